"""Loads directories of parquet files: decides which files are the shards of one split."""

import glob
import re
from pathlib import Path

import datasets
import pyarrow.parquet

from ..errors import InputError
from .class_lists import Source
from .file_inventory import OTHER_FORMAT, FileInventory, is_document
from .image_folders import METADATA, no_such_split
from .splits import split_named, splits_of_path


SHARD = re.compile(r"-([0-9]+)-of-([0-9]+)(?=[-.])")  # "train-00000-of-00003.parquet"
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
NUMBER = re.compile(f"{UUID}|[0-9]+")


def is_parquet(path: Path) -> bool:
    """Whether a file holds records in the parquet format."""
    return path.suffix.lower() == ".parquet" and path.name not in METADATA


def load_parquet(
    directory: Path, files: FileInventory, split: str, accept_left_out_files: bool, cache_dir: str
) -> Source:
    """Load one split of the parquet files in a directory.

    Args:
        directory (`Path`): The directory.
        files (`FileInventory`): All files of the directory; those that are not used are marked in it.
        split (`str`): The name of the split.
        accept_left_out_files (`bool`): Whether to accept that files are left out or missing.
        cache_dir (`str`): The directory for the cache of `datasets`.

    Raises:
        InputError: If the split does not exist, or its files are not the shards of one table, or if records may be
            lost.
    """
    files.leave_out("documents", lambda path: is_document(path) and not is_parquet(path))
    files.leave_out(OTHER_FORMAT, lambda path: not is_parquet(path))
    splits = {path: splits_of_path(path.relative_to(directory)) for path in files.used}
    chosen = [path for path in files.used if (split_named(split) or split) in splits[path]]
    if not chosen and split == "train":
        chosen = [path for path in files.used if not splits[path]]
    if not chosen:
        raise no_such_split(directory, split)
    files.leave_out(f"not in the split {split!r}", lambda path: path not in chosen)
    _check_one_table(directory, chosen)
    files.check_nothing_is_lost(accept_left_out_files)
    if not accept_left_out_files:
        _check_no_shard_is_missing(directory, chosen)
    if sum(pyarrow.parquet.read_metadata(path).num_rows for path in chosen) == 0:
        raise InputError(f"The parquet files in {directory} hold no records: pass those of another data set.")
    paths = [glob.escape(str(path.resolve())) for path in chosen]
    dataset = datasets.load_dataset("parquet", data_files={split: paths}, split=split, cache_dir=cache_dir)
    return Source(dataset, provenance=files.provenance())


def _check_one_table(directory: Path, shards: list[Path]) -> None:
    """Refuse several configurations of a data set, in which one image would be several records."""
    tables = {(path.parent, *(total for _, total in SHARD.findall(path.name))) for path in shards}
    names = {NUMBER.sub("0", SHARD.sub("", path.name.lower())) for path in shards}
    if len(tables) > 1 or len(names) > 1:
        raise InputError(
            f"The parquet files in {directory} are not the numbered parts of one table, so that an image may be in "
            "several of them: pass the directory of one configuration of the data set as `train_data_dir`, or move "
            "the other files elsewhere, or number the parts, as in part-0.parquet."
        )


def _check_no_shard_is_missing(directory: Path, shards: list[Path]) -> None:
    found = [SHARD.search(path.name) for path in shards]
    numbers = {int(match[1]) for match in found if match}
    total = max((int(match[2]) for match in found if match), default=0)
    if not total:  # names such as "part-3.parquet" do not tell the number of files, but show gaps
        numbers = _numbers_in_use(shards)
        counts_from = min(numbers, default=0)
        total = max(numbers) - counts_from + 1 if counts_from in (0, 1) and numbers else len(numbers)
    if missing := total - len(numbers):
        raise InputError(
            f"{missing:,} of {total:,} parquet files are missing in {directory}: add them, or pass "
            "`accept_left_out_files` to load the data set without them."
        )


def _numbers_in_use(shards: list[Path]) -> set[int]:
    """The numbers in which the names of the files differ; none if they differ in several, as dates do."""
    rows = [[int(number) for number in re.findall("[0-9]+", re.sub(UUID, "", path.name))] for path in shards]
    differing = [set(numbers) for numbers in zip(*rows, strict=False) if len(set(numbers)) > 1]
    return differing[0] if len(differing) == 1 else set()
