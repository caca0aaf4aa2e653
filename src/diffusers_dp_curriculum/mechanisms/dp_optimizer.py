"""Opacus' optimizer, made exact in the three places where single precision would break its guarantee.

Noise: PyTorch makes a float32 normal number from uniform numbers of 24 bits (on a CPU), none of which is beyond 5.77
standard deviations (https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/cpu/DistributionTemplates.h,
`normal_fill`). A release beyond that would prove that a record was there, with a probability that can exceed delta. In
float64 no number is beyond 8.57 standard deviations, where the probability is 1e-17.

Norms: a float32 norm of some million values comes out too small by up to a percent, so that a gradient could keep more
than the clipping norm; and matrix products, by which Opacus clips, follow autocast and TF32.

Sums: every addition in float32 rounds the sum of all records so far, and whether a record is among them changes how. In
a badly chosen sum of 16,384 clipped gradients one record counts several times. In float64 all roundings of a sum of n
records together are at most n^2 2^-53 of the clipping norm. For up to 200,000 records in a step this is less than the
margin by which [`norm_bounds`] overestimates norms.
"""

from collections.abc import Callable
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed

from ..distributed import num_processes, process_index
from ..transfers import to_device


NORM_BLOCK = 256  # values whose squares are added up in float32
VALUES_AT_ONCE = 2**20  # gradient values that are in memory in float64 at a time


def norm_bounds(grad_samples: list[torch.Tensor]) -> torch.Tensor:
    """An upper bound on the L2 norm of each record's gradient over all parameters: 7e-6 to 2e-5 above it, relatively.

    Squares are added up in float32 within blocks of b = 256 values, and blocks in float64. Each addition in float32,
    the squaring and the root make a result too small by a factor of (1 - 2^-24) at most, in whatever order values are
    added; the norm of a block is too small by (b + 2) / 2 such factors at most. The result is multiplied by 1 + b
    2^-24, which is twice as much as all of them. A last term adds what is lost where squares are smaller than the
    smallest float32 number.

    Args:
        grad_samples (`list[torch.Tensor]`): For each parameter the gradients of B records, `(B, *shape)` in float32.

    Returns:
        `torch.Tensor`: `(B,)` in float64; infinite where a square is larger than the largest float32 number.
    """
    squares, values = [], 0
    for gradient in grad_samples:
        rows = gradient.reshape(len(gradient), gradient.shape[1:].numel())
        blocks = rows.shape[1] // NORM_BLOCK
        in_blocks, rest = rows.tensor_split([blocks * NORM_BLOCK], dim=1)
        block_norms = torch.linalg.vector_norm(in_blocks.unflatten(1, (blocks, NORM_BLOCK)), dim=2)
        squares += [block_norms.double().square().sum(1), rest.double().square().sum(1)]
        values += rows.shape[1]
    norms = torch.stack(squares).sum(0).sqrt()
    return norms * (1 + NORM_BLOCK * 2.0**-24) + values**0.5 * 2.0**-63


class ExactDPOptimizer(DPOptimizer):
    """Opacus' `DPOptimizer`, with norms that are never too small, and sums and noise in float64.

    Args:
        normal (`Callable`): Called as `normal(shape, generator)`, returns standard normal numbers in float64.
        args: Positional arguments of `DPOptimizer`.
        options: Keyword arguments of `DPOptimizer`.
    """

    def __init__(
        self, *args: Any, normal: Callable[[torch.Size, torch.Generator], torch.Tensor], **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.normal = normal

    def clip_and_accumulate(self) -> None:
        """Scale each record's gradient to `max_grad_norm` at most, and add the results to `summed_grad`, in float64."""
        factors = self.max_grad_norm / norm_bounds(self.grad_samples).clamp(min=self.max_grad_norm)
        for p in self.params:
            _check_processed_flag(p.grad_sample)
            if p.summed_grad is None:
                p.summed_grad = torch.zeros(p.shape, dtype=torch.float64, device=p.device)
            at_once = max(VALUES_AT_ONCE // max(p.numel(), 1), 1)
            for gradients, scale in zip(p.grad_sample.split(at_once), factors.split(at_once), strict=True):
                p.summed_grad += (scale @ gradients.double().reshape(len(scale), p.numel())).view(p.shape)
            _mark_as_processed(p.grad_sample)

    def add_noise(self) -> None:
        """Add noise to the clipped sums in float64, and leave the result in `grad`, in the parameter's type."""
        for p in self.params:
            _check_processed_flag(p.summed_grad)
            noise = self.noise_multiplier * self.max_grad_norm * self.normal(p.summed_grad.shape, self.generator)
            p.grad = (p.summed_grad + to_device(noise, p.device)).to(p.dtype)
            _mark_as_processed(p.summed_grad)


class ExactDistributedDPOptimizer(ExactDPOptimizer):
    """An [`ExactDPOptimizer`] for several processes: the main one adds the noise, once, to the sum over all of them.

    Opacus' `DistributedDPOptimizer` adds the noise to the main process's own sum, rounds, and then adds the sums of the
    other processes: the rounding of that addition is hidden by no noise.
    """

    def add_noise(self) -> None:
        """Sum over the processes in float64, add the noise on the main one, and give all processes the result."""
        for p in self.params:
            torch.distributed.all_reduce(p.summed_grad)
        if process_index() == 0:
            super().add_noise()
        for p in self.params:
            if process_index() != 0:
                _check_processed_flag(p.summed_grad)
                _mark_as_processed(p.summed_grad)
                p.grad = torch.empty(p.shape, dtype=p.dtype, device=p.device)
            torch.distributed.broadcast(p.grad, src=0)


def dp_optimizer_class() -> type[ExactDPOptimizer]:
    """The optimizer for the number of processes that the run has."""
    return ExactDistributedDPOptimizer if num_processes() > 1 else ExactDPOptimizer
