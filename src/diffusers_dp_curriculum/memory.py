"""How much memory a piece of work takes, and one clear message where there is not enough."""

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


# Time between two measurements of the process's memory, each of which takes 20 microseconds. Work that fills memory
# lasts longer than this interval.
INTERVAL_SECONDS = 0.001


class PeakMemory:
    """A context that measures the peak of the memory in use, above what was in use at its start, as `num_bytes`.

    What was done before, such as decoding the records, does not count. On a GPU it is the memory that PyTorch has
    allocated there.

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
            _return_freed_memory()  # so that the next measurement starts from the same level

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            self._look()

    def _look(self) -> None:
        self.num_bytes = max(self.num_bytes, self._process.memory_info().rss - self._before)


def _return_freed_memory() -> None:
    """Return freed memory to the operating system: work that reused it would seem to need none."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
        if trim is not None:
            trim(0)


@contextmanager
def enough_memory(work: str, remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error into one sentence.

    Args:
        work (`str`): What does not fit.
        remedy (`str`): What to do.

    Raises:
        InputError: If the work runs out of memory.
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
    # Messages of the C++ library, oneDNN and cuBLAS.
    return any(words in str(error) for words in ("bad_alloc", "could not create a", "ALLOC_FAILED"))


def largest_share(config: DPCurriculumConfig, num_units: int) -> int:
    """The largest number of records, or users, of a DP-SGD batch that one process has to handle.

    Batch sizes are random: in one run of a thousand, some batch is larger.
    """
    rate = config.train_batch_size / num_units
    return math.ceil(binom.isf(1e-3 / max(config.max_train_steps, 1), num_units, min(rate, 1)) / num_processes())


def warm_up_memory(batch_size: int, option: str) -> AbstractContextManager[None]:
    """Turn an out-of-memory error of a warm-up batch into a message that says what to lower.

    Args:
        batch_size (`int`): Images in the batch.
        option (`str`): The name of the option that sets the size of the batch.

    Raises:
        InputError: If the memory does not suffice.
    """
    remedy = f"lower `{option}`" if batch_size > 1 else "use a smaller network"
    return enough_memory(f"A batch of {batch_size}", remedy)


def dp_sgd_memory(config: DPCurriculumConfig) -> AbstractContextManager[None]:
    """Turn an out-of-memory error of a physical batch of DP-SGD into a message that says what to lower.

    Raises:
        InputError: If the memory does not suffice.
    """
    if (physical := min(config.max_physical_batch_size, config.train_batch_size)) > 1:
        remedy = "lower `max_physical_batch_size`"
    elif config.noise_multiplicity > 1:
        remedy = "lower `noise_multiplicity`"
    else:
        remedy = "use a smaller network"
    return enough_memory(f"A batch of {physical}", remedy)
