"""Opacus' optimizer with the two places where single precision would break its promise made exact.

Noise: PyTorch makes a float32 normal number from uniform numbers of 24 bits (on a CPU), none of which is beyond 5.77
standard deviations (https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/cpu/DistributionTemplates.h,
`normal_fill`). A release beyond that would prove that a record was there, with a probability that can exceed delta. In
float64 the border is at 8.57, with a probability of 1e-17.

Clipping: a float32 norm of some million values comes out too small by up to a percent, so that a gradient could keep
more than the clipping norm; and matrix products, by which Opacus clips, follow autocast and TF32.
"""

from collections.abc import Callable
from typing import Any

import torch
from opacus.optimizers import DistributedDPOptimizer, DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed

from .processes import num_processes


class ExactDPOptimizer(DPOptimizer):
    """Opacus' `DPOptimizer`, with norms and noise in float64.

    Args:
        normal (`Callable`): Called as `normal(shape, generator)`, gives standard normal numbers in float64.

    The others are those of `DPOptimizer`.
    """

    def __init__(
        self, *args: Any, normal: Callable[[torch.Size, torch.Generator], torch.Tensor], **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.normal = normal

    def clip_and_accumulate(self) -> None:
        """Scale each record's gradient to `max_grad_norm` at most, and add the results to `summed_grad`."""
        of_parameters = [
            torch.linalg.vector_norm(gradient.reshape(len(gradient), p.numel()), dim=1, dtype=torch.float64)
            for gradient, p in zip(self.grad_samples, self.params, strict=True)
        ]
        norms = torch.linalg.vector_norm(torch.stack(of_parameters), dim=0)
        factors = (self.max_grad_norm / norms.clamp(min=self.max_grad_norm)).float()
        factors[factors < torch.finfo(torch.float32).tiny] = 0  # those are rounded too far
        for p in self.params:
            _check_processed_flag(p.grad_sample)
            # In place: nobody needs the gradients any more, and a copy would double the memory.
            clipped = p.grad_sample.mul_(factors.view(-1, *[1] * p.dim())).sum(dim=0)
            p.summed_grad = clipped if p.summed_grad is None else p.summed_grad + clipped
            _mark_as_processed(p.grad_sample)

    def add_noise(self) -> None:
        """Add noise to the clipped sums, and leave the result in `grad`."""
        for p in self.params:
            _check_processed_flag(p.summed_grad)
            noise = self.noise_multiplier * self.max_grad_norm * self.normal(p.summed_grad.shape, self.generator)
            p.grad = (p.summed_grad.double() + noise.to(p.device)).to(p.dtype)
            _mark_as_processed(p.summed_grad)


class ExactDistributedDPOptimizer(DistributedDPOptimizer, ExactDPOptimizer):
    """The same with several processes: the first adds the noise, to its own clipped sum, before all are summed."""

    def reduce_gradients(self) -> None:
        """Sum over the processes."""
        for p in self.params:
            # What is summed is what lies at the same place in memory, and the layout can depend on the batch.
            p.grad = p.grad.contiguous()
        super().reduce_gradients()


def dp_optimizer_class() -> type[ExactDPOptimizer]:
    """The one for as many processes as there are."""
    return ExactDistributedDPOptimizer if num_processes() > 1 else ExactDPOptimizer
