"""Reads data sets from the Hub, from directories in several formats, and from scikit-learn.

What is read is as sensitive as its source. It is returned as records of `datasets`, or as arrays.
"""

import contextlib
import re
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import DatasetCardData, HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from sklearn.datasets import load_digits as load_scikit_learn_digits

from ..errors import HubError, InputError
from .class_lists import Source
from .columns import image_paths
from .file_inventory import NOT_LOADED, OTHER_FORMAT, FileInventory, is_document
from .found_folders import num_found
from .image_folders import METADATA, SAVED, can_be_read, load_image_folder, no_such_split
from .parquet_files import is_parquet, load_parquet
from .table_files import check_tables


HUB_TIMEOUT_SECONDS = 10

# Files that `save_to_disk` writes in addition to the records, and those that `map` and `filter` leave beside them.
FILES_ABOUT_SAVED = {"dataset_dict.json", "dataset_info.json", "state.json"}
CACHES = ("cache-", "indices-", "tmp")

NUM_DIGITS_TRAIN = 1500


def read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a split of scikit-learn's digits: `uint8` images of shape `(N, 8, 8)` and their labels."""
    order = np.random.RandomState(0).permutation(1797)
    records = {"train": order[:NUM_DIGITS_TRAIN], "test": order[NUM_DIGITS_TRAIN:]}
    if split not in records:
        raise InputError(f"The digits have no split {split!r}: pass 'train' or 'test'.")
    digits = load_scikit_learn_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)
    return images[records[split]], digits.target[records[split]]


def load_from_hub(name: str, split: str, accept_left_out_files: bool = False) -> Source:
    """Load one split of a data set from the Hub.

    Args:
        name (`str`): The id of the data set.
        split (`str`): The name of the split.
        accept_left_out_files (`bool`, *optional*, defaults to False):
            Whether to accept that files are left out that may be records.

    Raises:
        HubError: If the split cannot be loaded.
        InputError: If records may be lost.
    """
    info = None
    try:
        # One request first, because `load_dataset` retries for a long time before it reports that the Hub is out of
        # reach. In offline mode the cache is used.
        with contextlib.suppress(OfflineModeIsEnabled):
            info = HfApi().dataset_info(name, timeout=HUB_TIMEOUT_SECONDS)
        dataset = datasets.load_dataset(name, split=split)
    except Exception as error:  # the Hub client, its HTTP library and `datasets` each raise their own
        raise HubError(
            f"The split {split!r} of {name!r} cannot be loaded from the Hub ({_reason(error)}): check its name and "
            "your connection, set HF_HUB_OFFLINE=1 to use a cached copy, or pass a local copy as `train_data_dir`."
        ) from error
    if info is None or dataset.info.builder_name != "imagefolder":
        return Source(dataset)
    # The card may declare the classes; `datasets` replaces them by the directories that hold an image.
    card = datasets.info.DatasetInfosDict.from_dataset_card_data(info.card_data or DatasetCardData())
    declared = card.get(dataset.info.config_name)
    return Source(
        dataset,
        declared.features if declared else None,
        "as the card of the data set declares them",
        _files_on_hub([file.rfilename for file in info.siblings or []], dataset, accept_left_out_files),
    )


def _files_on_hub(names: list[str], dataset: datasets.Dataset, accept_left_out_files: bool) -> dict[str, str]:
    """Lines for the plan about the files of an image folder on the Hub."""
    images = image_paths(dataset)  # the local copies
    in_repository = [re.search(r"/snapshots/[^/]+/(.+)", image) for image in images]
    used = {Path(found[1]) for found in in_repository if found}
    if len(used) < len(images):  # the images are in archives, whose files are not listed
        return {}
    files = FileInventory.of_names(names)
    files.leave_out_unreadable(lambda path: path in used or can_be_read(path))
    is_complete = num_found(dataset) >= sum(path.name not in METADATA for path in files.used)
    files.leave_out(
        f"not in the split {str(dataset.split)!r}" if is_complete else NOT_LOADED, lambda path: path not in used
    )
    files.check_nothing_is_lost(accept_left_out_files)
    return files.provenance()


def load_from_directory(
    directory: Path,
    files: FileInventory,
    split: str,
    *,
    class_names: list[str] | None,
    unconditional: bool,
    accept_left_out_files: bool,
    user_directory_level: int | None,
    cache_dir: str,
) -> Source:
    """Load one split of a data set that `datasets` saved, of parquet files, or of image files."""
    with check_tables(directory, files):
        is_saved = any((directory / name).is_file() for name in SAVED)
        if user_directory_level is not None and (is_saved or any(is_parquet(path) for path in files.used)):
            raise InputError(
                f"{directory} is a table of records, whose users no directory tells: give their column as "
                "`user_column` in the place of `user_directory_level`."
            )
        if is_saved:
            return _load_saved(directory, files, split, accept_left_out_files)
        if any(is_parquet(path) for path in files.used):
            return load_parquet(directory, files, split, accept_left_out_files, cache_dir)
        return load_image_folder(
            directory,
            files,
            split,
            class_names=class_names,
            unconditional=unconditional,
            accept_left_out_files=accept_left_out_files,
            user_directory_level=user_directory_level,
            cache_dir=cache_dir,
        )


def _load_saved(directory: Path, files: FileInventory, split: str, accept_left_out_files: bool) -> Source:
    files.leave_out("a cache of `datasets`", lambda path: path.name.startswith(CACHES) and path.suffix == ".arrow")
    files.leave_out("documents", lambda path: is_document(path) and path.name not in FILES_ABOUT_SAVED)
    files.leave_out(OTHER_FORMAT, lambda path: path.suffix != ".arrow" and path.name not in FILES_ABOUT_SAVED)
    files.check_nothing_is_lost(accept_left_out_files)
    saved = datasets.load_from_disk(str(directory))
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved, str(saved.split): saved}
    if split not in splits:
        raise no_such_split(directory, split)
    dataset = splits[split]
    used = {Path(file["filename"]).resolve() for file in dataset.cache_files}
    files.leave_out(
        f"not in the split {split!r}", lambda path: path.resolve() not in used and path.name not in FILES_ABOUT_SAVED
    )
    return Source(dataset, provenance=files.provenance())


def _reason(error: Exception) -> str:
    """The type of a library's error, and the first sentence of its message."""
    first_line = f"{error}\n".splitlines()[0]
    return f"{type(error).__name__}: {first_line.split('. ')[0].rstrip('.:')}"
