"""How long a run will take and how much memory it needs, from a rehearsal of all stages on random numbers."""

import math
import time
from dataclasses import dataclass, replace

import torch

from ..config import DPCurriculumConfig
from ..data.dataset_info import DatasetInfo
from ..distributed import num_processes
from ..gradients.losses import DenoisingLoss
from ..gradients.per_record_gradients import GradientsOf
from ..gradients.precision import FULL_PRECISION, Precision
from ..gradients.trials import on_trial
from ..mechanisms.dp_optimizer import dp_optimizer_class
from ..mechanisms.randomness import MechanismRandomness
from ..memory import PeakMemory, dp_sgd_memory, largest_share, warm_up_memory
from .checkpointing import TrainingState
from .optimization import start_dp_sgd
from .stages import WarmUpStage, warm_up_stages
from .warm_up import start_warm_up, warm_up


@dataclass(frozen=True)
class Estimate:
    """What a run takes on this machine.

    Args:
        seconds (`float`): Time of both stages.
        step_bytes (`int`): What a step adds to the memory of a process, of the GPU's if there is one, at its highest.
        network_bytes (`int`): The network, which is where the steps are.
        images_bytes (`int`): The records' images, a byte for each value, which are never on a GPU all at once.
        on_gpu (`bool`): Whether the steps are made on a GPU.
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
    config: DPCurriculumConfig,
    precision: Precision = FULL_PRECISION,
) -> Estimate:
    """Rehearse all stages on random images, a few steps of each, and extrapolate.

    The steps are those of the stages themselves, with clipping, noise, optimizer and average, at a learning rate of 0:
    what fits here fits later, and the network stays as it is. Every process of a run has to take part.

    Args:
        unet (`torch.nn.Module`): The network.
        loss (`DenoisingLoss`): Gives the noise draws.
        gradients_of (`Callable`): Gives the draws' per-record gradients.
        info (`DatasetInfo`): The public description of the data set.
        config (`DPCurriculumConfig`): The hyper-parameters.
        precision (`Precision`, *optional*): What the passes of the warm-ups are made with.

    Raises:
        InputError: If the memory does not suffice.
    """
    device = next(unet.parameters()).device
    network = [*unet.parameters(), *unet.buffers()]
    # Held back: the memory of a process has gaps, never the same ones, and what just fits here has to fit later.
    with dp_sgd_memory(config):
        reserve = [torch.empty_like(tensor) for tensor in network]
    seconds, step_bytes = 0.0, 0
    for stage in warm_up_stages(config):
        if stage.train_steps > 0:
            with warm_up_memory(stage.batch_size), on_trial(unet), PeakMemory(device) as memory:
                step = _warm_up_step(unet, loss, info, stage, config, precision)
            seconds, step_bytes = seconds + stage.train_steps * step, max(step_bytes, memory.num_bytes)
    with dp_sgd_memory(config), on_trial(unet), PeakMemory(device) as memory:
        step = _dp_sgd_step(unet, loss, gradients_of, info, config)
    del reserve
    return Estimate(
        seconds + config.max_train_steps * step,
        max(step_bytes, memory.num_bytes),
        sum(tensor.nbytes for tensor in network),
        math.prod(info.images_shape),
        device.type == "cuda",
    )


def _warm_up_step(
    unet: torch.nn.Module,
    loss: DenoisingLoss,
    info: DatasetInfo,
    stage: WarmUpStage,
    config: DPCurriculumConfig,
    precision: Precision,
) -> float:
    """Seconds of a step of a warm-up."""
    device = next(unet.parameters()).device
    mechanism = stage.queries.mechanism(info)
    images = torch.rand(info.num_labels * mechanism.steps, *info.image_shape)
    released = stage.queries.released(images, torch.arange(len(images)) % info.num_labels, mechanism)
    state = _standing_still(start_warm_up(unet, stage, config))
    durations = []
    for number in (1, 2):  # the first one also pays for allocations
        start = _now(device)
        warm_up(state, loss, released, replace(stage, train_steps=number), config, precision)
        durations.append(_now(device) - start)
    return min(durations)


def _dp_sgd_step(
    unet: torch.nn.Module,
    loss: DenoisingLoss,
    gradients_of: GradientsOf,
    info: DatasetInfo,
    config: DPCurriculumConfig,
) -> float:
    """Seconds of a step of DP-SGD, from one of two physical batches, at most."""
    device = next(unet.parameters()).device
    largest = largest_share(config, info.num_records)
    physical = min(config.max_physical_batch_size, largest)
    size = min(2 * physical, largest)
    state = _standing_still(start_dp_sgd(unet, config))
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
            for name, gradient in gradients_of(draws).items():
                unet.get_parameter(name).grad_sample = gradient
            optimizer.signal_skip_step(do_skip=piece is not pieces[-1])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state.advance()
        times.append(_now(device))
    # Where a second physical batch was needed, the first one has nothing of what is done once a step.
    of_physical = times[1] - times[0]
    return times[-1] - times[0] + (config.train_batch_size / num_processes() - size) / physical * of_physical


def _standing_still(state: TrainingState) -> TrainingState:
    """At a learning rate of 0, which changes no weight, and nothing that would raise it."""
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
