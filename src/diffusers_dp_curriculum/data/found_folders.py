"""Checks the directories in which `datasets` has found images, because it leaves out files without a word."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import datasets

from .class_lists import is_from_folder
from .columns import image_paths
from .file_inventory import NOT_LOADED, UNFETCHED, FileInventory, reason_to_ignore
from .image_folders import METADATA, can_be_read
from .splits import split_named


def check_no_files_are_lost(dataset: datasets.Dataset, accept_left_out_files: bool) -> None:
    """Refuse a data set beside whose images there are files that may be records.

    `datasets` does not follow linked directories and ignores files in other formats and broken links. The data set does
    not say which directory was searched, so the directories beside those of its images are looked at as well. An image
    that lies beside others may have been left out on purpose, by `filter` or `train_test_split`, and is no reason.

    Args:
        dataset (`datasets.Dataset`): Records that may come from a directory of files.
        accept_left_out_files (`bool`): Whether to accept that files are left out.

    Raises:
        InputError: If files are left out that may be records, and this is not accepted.
    """
    if not is_from_folder(dataset):
        return
    used = {Path(path) for path in image_paths(dataset)}
    directories = {path.parent for path in used}
    columns = dataset.features.values()
    classes = {name for column in columns if isinstance(column, datasets.ClassLabel) for name in column.names}
    reasons: dict[Path, str | None] = {}
    for directory in directories:
        reasons |= _files(directory)
    images = [
        path for path, reason in reasons.items() if reason is None and can_be_read(path) and path.name not in METADATA
    ]
    if 0 < num_found(dataset) < len(images):  # the metadata name a part of the images
        reasons |= {path: NOT_LOADED for path in images if path not in used}
    for directory in {directory.parent for directory in directories}:
        for beside in set(_entries(directory)) - directories:
            if not (reason_to_ignore(beside.name) or split_named(beside.name) or beside.name in classes):
                found = _files(beside)
                reasons |= {path: NOT_LOADED if can_be_read(path) and not why else why for path, why in found.items()}
    files = FileInventory(reasons)
    files.leave_out_unreadable(can_be_read)
    files.check_nothing_is_lost(accept_left_out_files)


def num_found(dataset: datasets.Dataset) -> int:
    """The number of images that `datasets` has found for all splits; 0 if that is not known.

    Args:
        dataset (`datasets.Dataset`): One split.
    """
    return sum(split.num_examples for split in (dataset.info.splits or {}).values())


def _files(directory: Path) -> dict[Path, str | None]:
    """The files directly in a directory; the reason to leave one out is known from its name or from a broken link."""
    return {
        path: reason_to_ignore(path.name) or (None if path.exists() else UNFETCHED)
        for path in _entries(directory)
        if not path.is_dir()
    }


def _entries(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):  # it may be a file, or gone, or somebody else's
        yield from directory.iterdir()
