"""Mechanism 3: DP-SGD with noise multiplicity, on Opacus' optimizer.

This is one of the three places that read sensitive records. Per step each record takes part independently with
probability q; its gradient is the mean over K noise draws and is clipped once (DPDM, Dockhorn et al., TMLR 2023,
arXiv:2210.09929), so that K does not change the sensitivity. Opacus' optimizer, made exact in `dp_optimizer.py`, clips,
sums, adds noise and divides by the expected batch size.

With users, it is users who take part (user-level sampling: Charles et al. 2024, arXiv:2407.07737; Chua et al. 2024,
arXiv:2406.14322). The K draws of a user are of records chosen at random among all that the user has, and the user's
gradient, their mean, is clipped once: however many records a user has, they change the sum by the clipping norm at
most.

With several processes one sample is drawn for all of them, and each takes an equal share. Each process clips and sums
the gradients of its share; the sums are added up; the main process adds the noise to the total. So a step is the same
mechanism for any number of processes, and no record or user is in two shares.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from opacus.utils.uniform_sampler import UniformWithReplacementSampler

from ..arithmetic import own_arithmetic
from ..data.grouping import Units
from ..distributed import num_processes, process_index
from ..errors import InputError
from ..gradients.losses import DenoisingLoss, NoiseDraws
from ..privacy.accounting import Mechanism
from ..privacy.ledger import PrivacyLedger
from .dp_optimizer import dp_optimizer_class
from .randomness import MechanismRandomness


SAMPLER_STEPS = 2**24  # Opacus' sampler compares a random number of 24 bits with the sample rate


def dp_sgd_mechanism(
    noise_multiplier: float, expected_batch_size: int, dataset_size: int, steps: int, max_grad_norm: float
) -> Mechanism:
    """The ledger entry of `steps` steps of DP-SGD, whose sample rate is rounded up to one that the sampler can realise.

    Args:
        noise_multiplier (`float`): sigma; the noise on the summed gradient has standard deviation sigma * C.
        expected_batch_size (`int`): Average number of records or users per step, q * N; at most N.
        dataset_size (`int`): N, the number of records or users.
        steps (`int`): Number of optimizer steps.
        max_grad_norm (`float`): C, the L2 norm that the gradient of a record or user is clipped to.
    """
    sample_rate = math.ceil(expected_batch_size / dataset_size * SAMPLER_STEPS) / SAMPLER_STEPS
    return Mechanism("dp_sgd", noise_multiplier, sample_rate, steps, max_grad_norm)


class Records(Protocol):
    """Sensitive records as DP-SGD reads them: an `ImageDataset`, or a `LatentDataset` of the same records."""

    @property
    def units(self) -> Units:
        """The units of privacy."""
        ...

    def batch(self, indices: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network is trained on of some records, and their labels; each of its record alone."""
        ...


class DPSGD:
    """DP-SGD over a data set: [`step`] is one execution of the mechanism.

    Creating the object reseeds PyTorch's global generators from the operating system. Which noise draws a record gets
    depends on its place in the batch, and so on which other records were sampled: if the draws were known (from a
    seed), the gradients of the other records would reveal a record's presence.

    Args:
        model (`torch.nn.Module`): A `UNet2DModel`; its trainable parameters must be those of `optimizer`.
        optimizer (`torch.optim.Optimizer`): The optimizer that takes the private gradients.
        loss (`DenoisingLoss`): Gives the noise draws.
        records (`ImageDataset` or `LatentDataset`): The sensitive records.
        mechanism (`Mechanism`): Noise multiplier, sample rate, number of steps and clipping norm (its sensitivity).
        ledger (`PrivacyLedger`): The ledger, which records each step before it is taken.
        noise_multiplicity (`int`): K, noise draws per record or user, and step.
        max_physical_batch_size (`int`): Records or users whose gradients are in memory at a time.
        gradients_of (`Callable`):
            Called with noise draws, returns their per-record gradients, as [`per_record_gradients`] does.
        randomness (`MechanismRandomness`, *optional*): The source of sampling and noise.
        observe (`Callable`, *optional*):
            Called with the noise draws of every physical batch. What it computes is NOT covered by the ledger.

    Raises:
        InputError:
            If the steps would pass the ledger's target, the ledger counts another unit of privacy, or the sampler
            cannot realise the sample rate. Nothing has been read or recorded in that case.
    """

    @own_arithmetic()
    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: DenoisingLoss,
        records: Records,
        mechanism: Mechanism,
        ledger: PrivacyLedger,
        noise_multiplicity: int,
        max_physical_batch_size: int,
        gradients_of: Callable[[NoiseDraws], dict[str, torch.Tensor]],
        randomness: MechanismRandomness | None = None,
        observe: Callable[[NoiseDraws], object] | None = None,
    ):
        randomness = randomness or MechanismRandomness()
        if mechanism.sample_rate * SAMPLER_STEPS % 1:
            raise InputError(
                f"The sampler cannot realise the sample rate {mechanism.sample_rate}: make the mechanism by "
                "dp_sgd_mechanism, which rounds it up."
            )
        self.execution = ledger.begin(mechanism, randomness, records.units.name)
        self.model = model
        self.loss = loss
        self.records = records
        self.mechanism = mechanism
        self.noise_multiplicity = noise_multiplicity
        self.max_physical_batch_size = max_physical_batch_size
        self.gradients_of = gradients_of
        self.randomness = randomness
        self.observe = observe
        self.device = next(model.parameters()).device
        self.optimizer = dp_optimizer_class()(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.sensitivity,
            expected_batch_size=mechanism.sample_rate * len(records.units),
            generator=randomness.generator(self.device),
            normal=randomness.normal,
        )
        self.batches = iter(
            UniformWithReplacementSampler(
                num_samples=len(records.units),
                sample_rate=mechanism.sample_rate,
                steps=mechanism.steps,
                generator=randomness.shared_generator(),
            )
        )
        randomness.reseed_global()

    def step(self) -> None:
        """Sample a batch, sum the clipped gradients of its records or users, add noise, and let the optimizer step.

        Raises:
            InputError: If all steps of the mechanism have been taken; nothing has been read or recorded in that case.
        """
        with self.execution.step():
            self._execute()

    def _execute(self) -> None:
        self._forget_an_interrupted_step()
        batch = torch.tensor(next(self.batches), dtype=torch.int64)
        share = batch[process_index() :: num_processes()]
        # An empty share is one empty piece, which takes part in the same noisy step as any other. The processes may
        # have different numbers of pieces; they communicate in the last one.
        pieces = share.split(self.max_physical_batch_size)
        for number, piece in enumerate(pieces):
            self._set_grad_samples(piece)
            self.optimizer.signal_skip_step(do_skip=number < len(pieces) - 1)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def _forget_an_interrupted_step(self) -> None:
        """Drop the sums of a step that raised an error: the next step would release its records a second time."""
        self.optimizer._step_skip_queue.clear()
        self.optimizer._is_last_step_skipped = False
        self.optimizer.zero_grad(set_to_none=True)

    def _set_grad_samples(self, piece: torch.Tensor) -> None:
        if len(piece) == 0:
            gradients = {name: p.new_zeros(0, *p.shape) for name, p in self.model.named_parameters() if p.requires_grad}
        else:
            draws = self._draw(piece)
            if self.observe is not None:
                self.observe(draws)
            gradients = without_non_finite_records(self.gradients_of(draws))
        for name, gradient in gradients.items():
            self.model.get_parameter(name).grad_sample = gradient

    def _draw(self, piece: torch.Tensor) -> NoiseDraws:
        if self.randomness.insecure_noise_seed is None:
            return self._draw_of(piece)
        draws = []
        for alone in piece.split(1):
            self.randomness.seed_draws_insecurely(self.execution.steps_left, int(alone))
            draws.append(self._draw_of(alone))
        return NoiseDraws.cat(draws)

    def _draw_of(self, units: torch.Tensor) -> NoiseDraws:
        records = self.records.units.draw(units, self.noise_multiplicity)
        return self.loss.draw_each(*self.records.batch(records, self.device))


def without_non_finite_records(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Set the gradient of a record to zero, in place, if it is not finite, since it would ruin the sum.

    To ask whether there is such a record, the CPU would have to wait for the GPU; and a copy would take memory only in
    steps that have one, which no plan could know.

    Args:
        gradients (`dict[str, torch.Tensor]`): For each parameter the gradients of B records, `(B, *shape)`.

    Returns:
        `dict[str, torch.Tensor]`: The same gradients.
    """
    sums = torch.stack([gradient.reshape(len(gradient), -1).sum(dim=1) for gradient in gradients.values()])
    not_finite = ~sums.isfinite().all(dim=0)
    if not_finite.device.type == "cpu" and not not_finite.any():
        return gradients
    for gradient in gradients.values():
        gradient.masked_fill_(not_finite.view(-1, *[1] * (gradient.dim() - 1)), 0)
    return gradients
