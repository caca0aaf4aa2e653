"""Files that survive a power cut, and checks of output directories."""

import os
from pathlib import Path

from .errors import InputError


# Files and directories that operating systems, file servers and notebooks leave behind, in lower case.
LEFT_BEHIND = {
    *(".ds_store", ".appledouble", ".fseventsd", ".localized", ".spotlight-v100", ".trashes", "__macosx", "icon\r"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", ".snapshot", ".directory"),
    *("lost+found", ".trash", ".ipynb_checkpoints", "__pycache__", ".pytest_cache", ".idea", ".vscode"),
}


def is_left_behind(name: str) -> bool:
    """Whether a file or directory of this name is one that tools leave behind, which nobody has put there."""
    name = name.lower()
    return name in LEFT_BEHIND or name.startswith(("._", ".nfs", ".fuse_hidden", ".trash-"))


def sync(path: Path) -> None:
    """Flush the content of a file, or the entries of a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_new_or_empty(directory: Path) -> bool:
    """Whether nothing can be overwritten in a directory, because it does not exist or holds at most what tools leave.

    Args:
        directory (`Path`): A path, at which there may also be a file.
    """
    if not directory.is_dir():
        return not directory.exists()
    return all(is_left_behind(path.name) for path in directory.iterdir())


def check_new_or_empty(output_dir: Path) -> None:
    """Refuse an output directory that is not empty, so that nothing is overwritten or mixed up.

    Args:
        output_dir (`Path`): Where results will be written.

    Raises:
        InputError: If the directory is not empty, or the path is a file.
    """
    if not is_new_or_empty(output_dir):
        raise InputError(f"{output_dir} is neither new nor an empty directory: choose another as `output_dir`.")


def check_outside(output_dir: Path, data_dir: Path) -> None:
    """Refuse to write into the directory of a data set, where the next run would take the results for records.

    Args:
        output_dir (`Path`): Where results will be written.
        data_dir (`Path`): The directory of the data set.

    Raises:
        InputError: If the output directory is in the directory of the data set.
    """
    if output_dir.resolve().is_relative_to(data_dir.resolve()):
        raise InputError(
            f"{output_dir} is in the directory of the data set, {data_dir}, where the next run would take its pictures "
            "for records: choose another `output_dir`."
        )
