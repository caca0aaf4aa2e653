"""Room for the records in memory, or in a temporary file that is gone with the process."""

import math
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..files import check_room, full_disk_errors


# Larger arrays are memory maps of a temporary file.
MAX_BYTES_IN_MEMORY = 4 * 2**30


def allocate(shape: tuple[int, ...], dtype: npt.DTypeLike, what: str) -> np.ndarray:
    """Make an array without values, in memory or, if it is large, as a memory map of a temporary file.

    Args:
        shape (`tuple[int, ...]`): The shape of the array.
        dtype (`numpy.dtype`): The type of its numbers.
        what (`str`): What will be in the array, at the beginning of a message, such as `"The decoded images"`.

    Raises:
        StorageError: If the disk of temporary files is too small.
    """
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if num_bytes <= MAX_BYTES_IN_MEMORY:
        return np.empty(shape, dtype=dtype)
    directory, remedy = Path(tempfile.gettempdir()), "set TMPDIR to a directory on a larger disk"
    check_room(directory, num_bytes, what, remedy)
    # The file has no name, so the system deletes it when the last reference to the memory map is gone.
    with tempfile.TemporaryFile() as file, full_disk_errors(directory, "start again"):
        # The room is reserved: a process that writes to a memory map on a full disk is killed.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)
