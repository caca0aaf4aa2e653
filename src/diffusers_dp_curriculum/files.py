"""Files that have to survive a power cut, and directories that must hold nothing yet."""

import os
from pathlib import Path

from .errors import InputError


def sync(path: Path) -> None:
    """Make a file's content, or the names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_new_or_empty(output_dir: Path) -> None:
    """Refuse a directory that holds anything, before the work for it is begun: nothing is overwritten or mixed up.

    Args:
        output_dir (`Path`): Where results are to be written.

    Raises:
        InputError: If it holds anything, or is no directory.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise InputError(f"{output_dir} is neither new nor an empty directory: choose another as `output_dir`.")
