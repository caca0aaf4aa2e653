"""How long a run will take and how much memory it needs, measured on random numbers."""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from .config import DPCurriculumConfig
from .errors import InputError
from .losses import DenoisingLoss, NoiseDraws, denoising_error


@dataclass(frozen=True)
class Estimate:
    """Of a run on this machine.

    Args:
        seconds (`float`): Time of both stages.
        peak_bytes (`int`): The most memory that a process has used so far, of the GPU's if there is one.
    """

    seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        return (
            f"  expected time   {_duration(self.seconds)}\n"
            f"  memory          {self.peak_bytes / 2**30:.1f} GiB a process, measured on random images"
        )


def estimate(
    unet: torch.nn.Module,
    loss: DenoisingLoss,
    gradients_of: Callable[[NoiseDraws], object],
    image_shape: tuple[int, int, int],
    config: DPCurriculumConfig,
    num_processes: int = 1,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Estimate:
    """Time one physical batch of DP-SGD and one warm-up step on random numbers, and extrapolate.

    Args:
        unet (`torch.nn.Module`): The network; its weights stay as they are.
        loss (`DenoisingLoss`): Gives the noise draws.
        gradients_of (`Callable`): Gives the draws' per-record gradients.
        image_shape (`tuple[int, int, int]`): Channels, height and width.
        config (`DPCurriculumConfig`): The hyper-parameters.
        num_processes (`int`, *optional*, defaults to 1): Between how many the work is divided.
        autocast (`Callable`, *optional*): Makes the context of the warm-up's forward pass.

    Raises:
        InputError: If the memory does not suffice.
    """
    device = next(unet.parameters()).device
    unet.train()  # as it will be in earnest, also for a compiler, which traces the network here

    def seconds(batch_size: int, noise_multiplicity: int, work: Callable[[NoiseDraws], object]) -> float:
        images = torch.rand(batch_size, *image_shape, device=device) * 2 - 1
        labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
        durations = []
        for _ in range(3):  # the first one also pays for the allocations
            start = time.perf_counter()
            work(loss.draw(images, labels, noise_multiplicity))
            if device.type == "cuda":
                torch.cuda.synchronize()
            durations.append(time.perf_counter() - start)
        return min(durations)

    def warm_up(draws: NoiseDraws) -> None:
        with autocast():
            error = denoising_error(unet, draws.flatten())
        error.backward()
        unet.zero_grad(set_to_none=True)

    physical = min(config.max_physical_batch_size, config.train_batch_size)
    with _memory_for(physical, "max_physical_batch_size" if physical > 1 else "noise_multiplicity"):
        private = seconds(physical, config.noise_multiplicity, gradients_of)
    total = config.max_train_steps * config.train_batch_size / num_processes / physical * private
    if config.central_statistic != "none":
        share = math.ceil(config.central_batch_size / num_processes)
        with _memory_for(share, "central_batch_size"):
            total += config.central_train_steps * seconds(share, 1, warm_up)
    return Estimate(total, _peak_bytes(device))


@contextmanager
def _memory_for(batch_size: int, flag: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise InputError(f"A batch of {batch_size} does not fit into the memory: lower {flag}.") from error


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {seconds:.0f} seconds"
