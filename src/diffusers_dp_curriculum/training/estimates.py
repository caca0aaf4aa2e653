"""Estimates time and memory of a run by trying a few steps of each stage on random images."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from ..config import DPCurriculumConfig
from ..data.dataset_info import DatasetInfo
from ..data.latents import BATCH_SIZE as ENCODED_AT_ONCE
from ..distributed import num_processes
from ..gradients.losses import DenoisingLoss
from ..gradients.per_record_gradients import GradientsOf
from ..gradients.precision import FULL_PRECISION, Precision
from ..gradients.trials import on_trial
from ..mechanisms.class_features import pooled_shape
from ..mechanisms.dp_optimizer import dp_optimizer_class
from ..mechanisms.dp_sgd import without_non_finite_records
from ..mechanisms.public_eyes import BATCH_SIZE as SEEN_AT_ONCE
from ..mechanisms.randomness import MechanismRandomness
from ..memory import PeakMemory, dp_sgd_memory, enough_memory, largest_share, warm_up_memory
from .autoencoder import Autoencoder
from .auxiliary_generator import fit_generator, start_generator
from .optimization import start_dp_sgd
from .stages import GeneratorStage, Stage, WarmUpStage
from .trainable import trained_part
from .training_state import TrainingState
from .warm_up import start_warm_up, warm_up


@dataclass(frozen=True)
class Estimate:
    """Time and memory that a run needs on this machine.

    Args:
        seconds (`float`): Time of all stages.
        step_bytes (`int`): Peak memory that a step adds in one process, on the GPU if there is one.
        network_bytes (`int`): Memory of the network, and of the autoencoder if there is one, on the same device.
        images_bytes (`int`):
            Memory of the records' images, one byte per value, and of their latents if there are any; they always stay
            in main memory.
        on_gpu (`bool`): Whether the steps run on a GPU.
    """

    seconds: float
    step_bytes: int
    network_bytes: int
    images_bytes: int
    on_gpu: bool

    def __str__(self) -> str:
        images = f"{_size(self.images_bytes)} for the images"
        steps = f"{_size(self.step_bytes)} for a step, {_size(self.network_bytes)} for the network"
        total = self.step_bytes + self.network_bytes
        if self.on_gpu:
            memory = f"{_size(total)} of a GPU: {steps}; and beside Python itself {images}"
        else:
            memory = f"{_size(total + self.images_bytes)} a process beside Python itself: {steps}, {images}"
        return f"  expected time   {_duration(self.seconds)}\n  memory          {memory}"


def estimate(
    unet: torch.nn.Module,
    loss: DenoisingLoss,
    gradients_of: GradientsOf,
    info: DatasetInfo,
    num_images: int,
    images_bytes: int,
    config: DPCurriculumConfig,
    stages: Sequence[Stage],
    precision: Precision = FULL_PRECISION,
    autoencoder: Autoencoder | None = None,
) -> Estimate:
    """Run a few steps of each stage on random images, and extrapolate to the whole run.

    The steps do everything that real ones do, including clipping, noise, optimizer and average, so a run whose estimate
    succeeds has enough memory. The learning rate is 0, so the weights do not change. Every process of a run must call
    this.

    Args:
        unet (`torch.nn.Module`): The network.
        loss (`DenoisingLoss`): Makes noise draws from images.
        gradients_of (`Callable`): Computes the per-record gradients of noise draws.
        info (`DatasetInfo`): The public description of the data set.
        num_images (`int`): Number of records, also where users are the unit of privacy.
        images_bytes (`int`): Memory of the records' images, and of their latents if there are any.
        config (`DPCurriculumConfig`): The hyper-parameters.
        stages (`Sequence[Stage]`): The stages before DP-SGD.
        precision (`Precision`, *optional*): Autocast type and loss scale of the warm-up stages.
        autoencoder (`Autoencoder`, *optional*): The autoencoder whose latents the network denoises.

    Returns:
        `Estimate`: Time and memory of the run.

    Raises:
        InputError: If there is not enough memory.
    """
    device = next(unet.parameters()).device
    network = [*unet.parameters(), *unet.buffers()]
    public = [] if autoencoder is None else [*autoencoder.model.parameters(), *autoencoder.model.buffers()]
    # Reserve the memory of one more network: memory fragments differently in each process, so a run that only just fits
    # here might not fit later.
    with dp_sgd_memory(config):
        reserve = [torch.empty_like(tensor) for tensor in network]
    seconds, step_bytes = 0.0, 0
    for stage in stages:
        if stage.train_steps > 0:
            with _memory_of(stage), on_trial(unet), PeakMemory(device) as memory:
                if isinstance(stage, GeneratorStage):
                    seconds += _query_seconds(device, info, stage, num_images)
                    step = _generator_step(unet, info, stage, config)
                else:
                    step = _warm_up_step(unet, loss, info, stage, config, precision, autoencoder)
            seconds, step_bytes = seconds + stage.train_steps * step, max(step_bytes, memory.num_bytes)
    if autoencoder is not None and config.max_train_steps > 0:
        with enough_memory("A batch of images to encode", "use a smaller autoencoder"), PeakMemory(device) as memory:
            seconds += _encoding_seconds(autoencoder, num_images * (2 if config.random_flip else 1))
        step_bytes = max(step_bytes, memory.num_bytes)
    if config.max_train_steps > 0:
        with dp_sgd_memory(config), on_trial(unet), PeakMemory(device) as memory, trained_part(unet, config):
            network_info = info if autoencoder is None else autoencoder.latent_info
            step = _dp_sgd_step(unet, loss, gradients_of, network_info, config)
        seconds, step_bytes = seconds + config.max_train_steps * step, max(step_bytes, memory.num_bytes)
    del reserve
    return Estimate(
        seconds,
        step_bytes,
        sum(tensor.nbytes for tensor in [*network, *public]),
        images_bytes,
        device.type == "cuda",
    )


def _memory_of(stage: Stage) -> AbstractContextManager[None]:
    if isinstance(stage, GeneratorStage):
        smaller = "lower `frequency_features`" if stage.queries.eyes is None else "name a smaller `feature_extractor`"
        return enough_memory(stage.title, smaller)
    return warm_up_memory(stage.batch_size, stage.batch_size_option)


def _query_seconds(device: torch.device, info: DatasetInfo, stage: GeneratorStage, num_images: int) -> float:
    """Measure how long a public model looks at all records; without one a query takes seconds."""
    if stage.queries.eyes is None:
        return 0.0
    image_shape = pooled_shape(info.image_shape)
    images = torch.rand(SEEN_AT_ONCE, *image_shape, dtype=torch.float64)
    features_of = stage.queries.features_of(image_shape)
    start = _now(device)
    features_of(images)
    return num_images / SEEN_AT_ONCE * (_now(device) - start)


def _generator_step(
    unet: torch.nn.Module, info: DatasetInfo, stage: GeneratorStage, config: DPCurriculumConfig
) -> float:
    """Measure the seconds of one step of fitting a generator to features, here of zeros."""
    device = next(unet.parameters()).device
    features, seed = stage.queries.without_records(info), config.seed
    state = start_generator(features.image_shape, info.num_labels, stage.train_steps, seed, device)
    return _second_step(device, lambda steps: fit_generator(state, features, steps, seed, eyes=stage.queries.eyes))


def _warm_up_step(
    unet: torch.nn.Module,
    loss: DenoisingLoss,
    info: DatasetInfo,
    stage: WarmUpStage,
    config: DPCurriculumConfig,
    precision: Precision,
    autoencoder: Autoencoder | None,
) -> float:
    """Measure the seconds of one warm-up step."""
    device = next(unet.parameters()).device
    images = torch.rand(info.num_labels, *info.image_shape)
    released = stage.images(images, torch.arange(len(images)))
    state = _without_learning(start_warm_up(unet, stage, config))

    def train_until(steps: int) -> object:
        until = replace(stage, train_steps=steps)
        return warm_up(state, loss, released, until, config, precision, autoencoder=autoencoder)

    return _second_step(device, train_until)


def _encoding_seconds(autoencoder: Autoencoder, number: int) -> float:
    """Measure the seconds of encoding one batch, and scale them to a number of images."""
    images = torch.zeros(ENCODED_AT_ONCE, *autoencoder.image_info.image_shape).to(autoencoder.device)
    return number / ENCODED_AT_ONCE * _second_step(autoencoder.device, lambda _: autoencoder.encode(images))


def _second_step(device: torch.device, train_until: Callable[[int], object]) -> float:
    """The seconds of the faster of two steps, since the first one also pays for allocations."""
    durations = []
    for number in (1, 2):
        start = _now(device)
        train_until(number)
        durations.append(_now(device) - start)
    return min(durations)


def _dp_sgd_step(
    unet: torch.nn.Module,
    loss: DenoisingLoss,
    gradients_of: GradientsOf,
    info: DatasetInfo,
    config: DPCurriculumConfig,
) -> float:
    """Measure the seconds of one DP-SGD step, on at most two physical batches, and scale them to the whole batch."""
    device = next(unet.parameters()).device
    largest = largest_share(config, info.num_units)
    physical = min(config.max_physical_batch_size, largest)
    size = min(2 * physical, largest)
    state = _without_learning(start_dp_sgd(unet, config))
    randomness = MechanismRandomness(config.secure_rng)
    optimizer = dp_optimizer_class()(
        state.optimizer,
        noise_multiplier=1.0,
        max_grad_norm=config.max_grad_norm,
        expected_batch_size=size,
        generator=randomness.generator(device),
        normal=randomness.normal,
    )
    for count in (physical, size):  # the first step also pays for allocations
        images = torch.rand(count, *info.image_shape) * 2 - 1
        labels = torch.arange(count) % info.num_labels
        pieces = torch.arange(count).split(physical)
        times = []
        for piece in pieces:
            times.append(_now(device))
            draws = loss.draw(images[piece].to(device), labels[piece].to(device), config.noise_multiplicity)
            for name, gradient in without_non_finite_records(gradients_of(draws)).items():
                unet.get_parameter(name).grad_sample = gradient
            optimizer.signal_skip_step(do_skip=piece is not pieces[-1])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state.advance()
        times.append(_now(device))
    # If there are two physical batches, the time of the first excludes the work that is done once per step.
    physical_seconds = times[1] - times[0]
    return times[-1] - times[0] + (config.train_batch_size / num_processes() - size) / physical * physical_seconds


def _without_learning(state: TrainingState) -> TrainingState:
    """The state with a learning rate of 0 and without the schedule that would raise it, so that no weight changes."""
    for group in state.optimizer.param_groups:
        group["lr"] = 0.0
    return replace(state, lr_scheduler=None)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _size(num_bytes: int) -> str:
    if num_bytes < 2**30:
        return f"{math.ceil(num_bytes / 2**20)} MiB"
    return f"{num_bytes / 2**30:.1f} GiB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {seconds:.0f} seconds"
