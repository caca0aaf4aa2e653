"""Files that survive a power cut, full disks, paths as people write them, and checks of output directories."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DPCurriculumError, InputError, StorageError


# Files and directories that operating systems, file servers and notebooks leave behind, in lower case.
LEFT_BEHIND = {
    *(".ds_store", ".appledouble", ".fseventsd", ".localized", ".spotlight-v100", ".trashes", "__macosx", "icon\r"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", ".snapshot", ".directory"),
    *("lost+found", ".trash", ".ipynb_checkpoints", "__pycache__", ".pytest_cache", ".idea", ".vscode"),
}


def local_path(path: str | os.PathLike[str]) -> Path:
    """The path that a person means, with the home directory in place of `~`, as no shell puts it in `--flag=~/x`."""
    return Path(os.path.expanduser(path))


def is_left_behind(name: str) -> bool:
    """Whether a file or directory of this name is one that tools leave behind, which nobody has put there."""
    name = name.lower()
    return name in LEFT_BEHIND or name.startswith(("._", ".nfs", ".fuse_hidden", ".trash-"))


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
    """Whether nothing can be overwritten in a directory, because it does not exist or holds at most what tools leave.

    Args:
        directory (`Path`): A path, at which there may also be a file.

    Raises:
        StorageError: If the directory cannot be read.
    """
    if not os.path.isdir(directory):
        return not os.path.exists(directory)
    try:
        return all(is_left_behind(name) for name in os.listdir(directory))
    except OSError as error:
        raise StorageError(f"{directory} cannot be read ({error.strerror}): choose another `output_dir`.") from error


def check_new_or_empty(output_dir: Path) -> None:
    """Refuse an output directory that is not empty, so that nothing is overwritten or mixed up.

    Args:
        output_dir (`Path`): Where results will be written.

    Raises:
        InputError: If the directory is not empty, or the path is a file.
        StorageError: If the directory cannot be created or written to.
    """
    if not is_new_or_empty(output_dir):
        raise InputError(f"{output_dir} is neither new nor an empty directory: choose another as `output_dir`.")
    check_can_write(output_dir)


def check_is_no_pattern(output_dir: Path) -> None:
    """Refuse a directory for a data set from which `datasets` would load other files, or none.

    Args:
        output_dir (`Path`): Where the data set will be written.

    Raises:
        InputError: If the path is a pattern, which may match other directories, or a chain of protocols.
    """
    found = [part for part in ("*", "?", "[", "::") if part in str(output_dir.absolute())]
    if found:
        raise InputError(
            f"{output_dir} has {found[0]} in its path, so that `datasets` would load other files than these, or none: "
            "choose another `output_dir`."
        )


def check_can_write(output_dir: Path) -> None:
    """Refuse an output directory that cannot be created or written to.

    Args:
        output_dir (`Path`): Where results will be written.

    Raises:
        StorageError: If the directory, or the nearest one above it that exists, cannot be written to, or no directory
            can have its name.
    """
    try:
        os.stat(output_dir)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # then it matters what is above it
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StorageError(f"{output_dir} cannot be created ({reason}): choose another `output_dir`.") from error
    if os.path.islink(output_dir) and not os.path.exists(output_dir):
        raise StorageError(f"{output_dir} is a link to nothing: create its target, or choose another `output_dir`.")
    existing = existing_parent(output_dir)
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise StorageError(f"{output_dir} cannot be created in {existing}: choose another `output_dir`.")


def check_room(directory: Path, num_bytes: int, work: str, remedy: str) -> None:
    """Refuse work that needs more room than there is on a disk.

    Args:
        directory (`Path`): Where the work will write; it may not exist yet.
        num_bytes (`int`): What it will write at most.
        work (`str`): What is written.
        remedy (`str`): What to do besides making room.

    Raises:
        StorageError: If there is not enough room.
    """
    free = shutil.disk_usage(existing_parent(directory)).free
    if num_bytes > free:
        raise StorageError(
            f"{work} take up to {num_bytes / 1e6:,.1f} MB on the disk of {directory}, where {free / 1e6:,.1f} MB are "
            f"free: make room, or {remedy}."
        )


def existing_parent(path: Path) -> Path:
    """A path, or the nearest directory above it that exists.

    Args:
        path (`Path`): A path that may not exist.
    """
    # Unlike `Path.exists`, this takes a path for missing that may not be looked at, or that no file can have.
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if os.path.exists(parent))


@contextmanager
def full_disk_errors(directory: Path, remedy: str) -> Iterator[None]:
    """Turn any error of a full disk into one sentence.

    Args:
        directory (`Path`): Where files are written.
        remedy (`str`): What to do after there is room.

    Raises:
        StorageError: If the disk is full.
    """
    try:
        yield
    except DPCurriculumError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise StorageError(f"The disk of {directory} is full: make room, and {remedy}.") from error


@contextmanager
def storage_errors(directory: Path, remedy: str) -> Iterator[None]:
    """Turn any error of a full disk, or of a file in an output directory, into one sentence.

    Args:
        directory (`Path`): Where results are written; no record may be there, as the message names the file.
        remedy (`str`): What to do after the disk can be written again.

    Raises:
        StorageError: If the disk is full, or a file in the directory cannot be written or read.
    """
    try:
        with full_disk_errors(directory, remedy):
            yield
    except OSError as error:
        name = error.filename
        if not (isinstance(name, str) and Path(name).absolute().is_relative_to(directory.absolute())):
            raise
        raise StorageError(
            f"{name} cannot be written or read ({error.strerror}): see to the disk and its permissions, and {remedy}."
        ) from error


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or the one from which it came, says that a disk is full.

    Args:
        error (`BaseException`): An error of any library.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if f"(os error {errno.ENOSPC})" in str(error) or f"(os error {errno.EDQUOT})" in str(error):  # of safetensors
        return True
    origin = error.__cause__ or error.__context__
    return origin is not None and is_full_disk(origin)


def check_data_dir(data_dir: Path, output_dir: Path) -> None:
    """Refuse a directory of a data set that does not exist, or to which results would be written.

    Args:
        data_dir (`Path`): The directory of the data set.
        output_dir (`Path`): Where results will be written.

    Raises:
        InputError: If the directory does not exist, or the output directory is in it.
    """
    if not data_dir.exists():
        raise InputError(f"{data_dir} does not exist: give the directory of images as `train_data_dir`.")
    check_outside(output_dir, data_dir)


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
