"""Mechanism 2: DP-SGD with noise multiplicity, on Opacus' optimizer.

This is one of the two places that read sensitive records. Per step each record takes part independently with
probability q; its gradient is the mean over K noise draws and is clipped once (DPDM, Dockhorn et al., TMLR 2023,
arXiv:2210.09929), so that K does not change the sensitivity. Opacus clips, sums, adds noise and divides by
the expected batch size.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from opacus.optimizers import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from .accounting import Mechanism, PrivacyLedger
from .data import ImageDataset
from .errors import InputError
from .losses import DenoisingLoss, NoiseDraws, denoising_error
from .randomness import entropy_generator, reseed_from_entropy


def dp_sgd_mechanism(
    noise_multiplier: float, expected_batch_size: int, dataset_size: int, steps: int, max_grad_norm: float
) -> Mechanism:
    """The ledger entry of `steps` steps of DP-SGD.

    Args:
        noise_multiplier (`float`): sigma; the noise on the summed gradient has standard deviation sigma * C.
        expected_batch_size (`int`): Records a step on average, q * N; at most N.
        dataset_size (`int`): N.
        steps (`int`): Number of optimizer steps.
        max_grad_norm (`float`): C, the L2 norm that a record's gradient is clipped to.
    """
    # Opacus' sampler compares a random number of 24 bits with q; this is the rate that it realises.
    sample_rate = math.ceil(expected_batch_size / dataset_size * 2**24) / 2**24
    return Mechanism("dp_sgd", noise_multiplier, sample_rate, steps, max_grad_norm)


class DPSGD:
    """DP-SGD over a data set: [`step`] is one execution of the mechanism.

    Making one reseeds PyTorch's global generators from the operating system: which draws a record gets depends on its
    place in the batch, and so on which other records were sampled. Were the draws known (from a seed), the gradients of
    all the others would tell of a record's presence.

    Args:
        model (`torch.nn.Module`): A `UNet2DModel`; its trainable parameters must be those of `optimizer`.
        optimizer (`torch.optim.Optimizer`): The optimizer that takes the private gradients.
        loss (`DenoisingLoss`): Gives the noise draws.
        records (`ImageDataset`): The sensitive records.
        mechanism (`Mechanism`): Noise multiplier, sample rate, number of steps and clipping norm (its sensitivity).
        ledger (`PrivacyLedger`): Where each step is recorded before it is made.
        noise_multiplicity (`int`): K, noise draws per record and step.
        max_physical_batch_size (`int`): Records whose gradients are in memory at a time.
        autocast (`Callable`, *optional*): Makes the context of the forward pass, for mixed precision.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: DenoisingLoss,
        records: ImageDataset,
        mechanism: Mechanism,
        ledger: PrivacyLedger,
        noise_multiplicity: int,
        max_physical_batch_size: int,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.model = model
        self.loss = loss
        self.records = records
        self.mechanism = mechanism
        self.ledger = ledger
        self.noise_multiplicity = noise_multiplicity
        self.max_physical_batch_size = max_physical_batch_size
        self.autocast = autocast
        self.device = next(model.parameters()).device
        self.optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.sensitivity,
            expected_batch_size=mechanism.sample_rate * len(records),
            generator=entropy_generator(self.device),
        )
        self.batches = iter(
            UniformWithReplacementSampler(
                num_samples=len(records),
                sample_rate=mechanism.sample_rate,
                steps=mechanism.steps,
                generator=entropy_generator(),
            )
        )
        reseed_from_entropy()

    def step(self) -> None:
        """Sample a batch, sum the clipped gradients of its records, add noise, and let the optimizer step."""
        self.ledger.record(replace(self.mechanism, steps=1))
        self._forget_an_interrupted_step()
        batch = torch.tensor(next(self.batches), dtype=torch.int64)
        # An empty batch is one empty piece: it takes the same noisy step as any other.
        pieces = batch.split(self.max_physical_batch_size)
        for number, piece in enumerate(pieces):
            self._set_grad_samples(piece)
            self.optimizer.signal_skip_step(do_skip=number < len(pieces) - 1)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def _forget_an_interrupted_step(self) -> None:
        """A step that raised must leave no sums behind: the next one would release its records twice."""
        self.optimizer._step_skip_queue.clear()
        self.optimizer._is_last_step_skipped = False
        self.optimizer.zero_grad(set_to_none=True)

    def _set_grad_samples(self, piece: torch.Tensor) -> None:
        if len(piece) == 0:
            gradients = {name: p.new_zeros(0, *p.shape) for name, p in self.model.named_parameters() if p.requires_grad}
        else:
            images = self.records.images[piece].to(self.device).float() / 127.5 - 1
            labels = self.records.labels[piece].to(self.device)
            draws = self.loss.draw(images, labels, self.noise_multiplicity)
            gradients = per_record_gradients(self.model, draws, self.autocast)
        for name, gradient in gradients.items():
            self.model.get_parameter(name).grad_sample = gradient


def per_record_gradients(
    model: torch.nn.Module,
    draws: NoiseDraws,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, torch.Tensor]:
    """The gradient of each record's mean loss over its K draws, for every trainable parameter.

    `torch.func` differentiates one record's K draws at a time and `vmap` runs the records together, so that a record's
    gradient cannot depend on another record, whatever the layers.

    Args:
        model (`torch.nn.Module`): Called as `model(noisy, timesteps, labels)`, answers with `.sample`.
        draws (`NoiseDraws`): The K draws of B records.
        autocast (`Callable`, *optional*): Makes the context of the forward pass.

    Returns:
        `dict[str, torch.Tensor]`: For each parameter's name a float32 tensor of shape `(B, *parameter.shape)`. A record
        whose gradient is not finite gets zeros: it contributes nothing rather than ruining the sum.
    """
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def record_loss(parameters, *record_draws):
        with autocast():
            return denoising_error(
                lambda *inputs: functional_call(model, parameters, inputs), NoiseDraws(*record_draws)
            )

    in_dims = (None, 0, 0, None if draws.labels is None else 0, 0)
    # The fused attention kernels have no batching rule and would run one record at a time. The backward pass of the
    # other one, which happens inside `grad`, finds its types only with autocast around it as well.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), autocast():
        gradients = vmap(grad(record_loss), in_dims=in_dims, randomness="different")(
            trainable, draws.noisy, draws.timesteps, draws.labels, draws.target
        )
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients.values()])
    finite = norms.isfinite().all(dim=0)
    if not finite.all():
        for gradient in gradients.values():
            gradient[~finite] = 0
    return gradients


def check_records_stay_apart(model: torch.nn.Module, image_shape: tuple[int, int, int], conditional: bool) -> None:
    """Refuse a model that mixes records: there a clipped gradient would not bound one record's influence.

    Args:
        model (`torch.nn.Module`): The network.
        image_shape (`tuple[int, int, int]`): Channels, height and width.
        conditional (`bool`): Whether the network takes class labels.

    Raises:
        InputError: If there is batch normalisation, running statistics, or a layer that mixes the batch.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) or getattr(module, "track_running_stats", False):
            raise InputError(
                f"The layer {name} ({type(module).__name__}) mixes records or keeps statistics of them, which DP-SGD "
                "cannot bound: use GroupNorm."
            )
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, *image_shape, generator=generator).to(device)
    timesteps = torch.full((2,), 10, device=device)
    labels = torch.zeros(2, dtype=torch.int64, device=device) if conditional else None
    training = model.training
    model.eval()
    with torch.no_grad():
        one = model(images[[0, 1]], timesteps, labels).sample[0]
        other = model(images[[0, 2]], timesteps, labels).sample[0]
    model.train(training)
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-4):
        raise InputError(
            "The network's answer for one record depends on the others in its batch, which DP-SGD cannot bound: use "
            "layers that treat each record alone."
        )
