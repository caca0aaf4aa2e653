"""How much memory a piece of work takes, and one sentence where there is not enough."""

import ctypes
import math
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from scipy.stats import binom

from .config import DPCurriculumConfig
from .distributed import num_processes
from .errors import InputError


# How often the memory of a process is looked at, which takes 20 microseconds; what fills memory lasts longer.
INTERVAL_SECONDS = 0.001


class PeakMemory:
    """A context that measures by how much the memory in use has grown at its highest point, as `num_bytes`.

    Nothing is in it that was done before, such as the decoding of records. On a GPU it is what PyTorch holds there.

    Args:
        device (`torch.device`): Where the work is done.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.num_bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        _return_freed_memory()
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.num_bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            self._look()
            self._ended.set()
            self._thread.join()
            _return_freed_memory()  # what follows begins where this began

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            self._look()

    def _look(self) -> None:
        self.num_bytes = max(self.num_bytes, self._process.memory_info().rss - self._before)


def _return_freed_memory() -> None:
    """Give back to the system what was freed but kept for later, as work that uses it again would look like none."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
        if trim is not None:
            trim(0)


@contextmanager
def enough_memory(work: str, remedy: str) -> Iterator[None]:
    """Say in one sentence that memory does not suffice.

    Args:
        work (`str`): What does not fit.
        remedy (`str`): What to do.

    Raises:
        InputError: If so.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise InputError(f"{work} does not fit into the memory: {remedy}.") from error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or should_reduce_batch_size(error):
        return True
    # Those of the C++ library, of oneDNN and of cuBLAS.
    return any(words in str(error) for words in ("bad_alloc", "could not create a", "ALLOC_FAILED"))


def largest_share(config: DPCurriculumConfig, num_records: int) -> int:
    """The most records of a DP-SGD batch that a process gets.

    The sizes of batches are random: in one run of a thousand there may be a larger one.
    """
    rate = config.train_batch_size / num_records
    return math.ceil(binom.isf(1e-3 / config.max_train_steps, num_records, min(rate, 1)) / num_processes())


def warm_up_memory(batch_size: int) -> AbstractContextManager[None]:
    """Say what to lower where memory does not suffice for a batch of a warm-up.

    Args:
        batch_size (`int`): Images in the batch.

    Raises:
        InputError: If the memory does not suffice.
    """
    remedy = "lower `central_batch_size`" if batch_size > 1 else "use a smaller network"
    return enough_memory(f"A batch of {batch_size}", remedy)


def dp_sgd_memory(config: DPCurriculumConfig) -> AbstractContextManager[None]:
    """Say what to lower where memory does not suffice for the gradients of a physical batch.

    Raises:
        InputError: If so.
    """
    if (physical := min(config.max_physical_batch_size, config.train_batch_size)) > 1:
        remedy = "lower `max_physical_batch_size`"
    elif config.noise_multiplicity > 1:
        remedy = "lower `noise_multiplicity`"
    else:
        remedy = "use a smaller network"
    return enough_memory(f"A batch of {physical}", remedy)
