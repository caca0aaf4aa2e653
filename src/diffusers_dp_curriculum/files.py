"""Files that survive a power cut, and a check that an output directory is empty."""

import os
from pathlib import Path

from .errors import InputError


def sync(path: Path) -> None:
    """Flush the content of a file, or the entries of a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_new_or_empty(output_dir: Path) -> None:
    """Refuse an output directory that is not empty, so that nothing is overwritten or mixed up.

    Args:
        output_dir (`Path`): Where results will be written.

    Raises:
        InputError: If the directory is not empty, or the path is a file.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise InputError(f"{output_dir} is neither new nor an empty directory: choose another as `output_dir`.")
