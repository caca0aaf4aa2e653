"""Whether results may be written to a directory; that of a training run has more to it, see run_directory.py."""

from pathlib import Path

from .errors import InputError


def check_new_or_empty(output_dir: Path) -> None:
    """Refuse a directory that holds anything, before the work for it is begun: nothing is overwritten or mixed up.

    Args:
        output_dir (`Path`): Where results are to be written.

    Raises:
        InputError: If it holds anything, or is no directory.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise InputError(f"{output_dir} is neither new nor an empty directory, so choose another as `output_dir`.")
