"""Files that survive a power cut, paths as people write them, and a check that an output directory is empty."""

import os
from pathlib import Path

from .errors import InputError


def local_path(path: str | os.PathLike[str]) -> Path:
    """The path that a person means, with the home directory in place of `~`, as no shell puts it in `--flag=~/x`."""
    return Path(os.path.expanduser(path))


def sync(path: Path) -> None:
    """Flush the content of a file, or the entries of a directory, to disk."""
    windows = os.name == "nt"  # it syncs files that are open for writing alone, and entries of directories by itself
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_new_or_empty(directory: Path) -> bool:
    """Whether nothing can be overwritten in a directory, because it does not exist or is empty.

    Args:
        directory (`Path`): A path, at which there may also be a file.
    """
    return not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))


def check_new_or_empty(output_dir: Path) -> None:
    """Refuse an output directory that is not empty, so that nothing is overwritten or mixed up.

    Args:
        output_dir (`Path`): Where results will be written.

    Raises:
        InputError: If the directory is not empty, or the path is a file.
    """
    if not is_new_or_empty(output_dir):
        raise InputError(f"{output_dir} is neither new nor an empty directory: choose another as `output_dir`.")
