"""Where data sets come from: the Hub, a directory in one of several formats, scikit-learn.

What is read here is as sensitive as its source; it goes on as records of `datasets`, or as arrays.
"""

import contextlib
import glob
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from sklearn.datasets import load_digits as load_scikit_learn_digits

from .errors import InputError


HUB_TIMEOUT_SECONDS = 10

SPLIT_DIRECTORIES = {"train", "test", "validation", "valid", "val"}

NUM_DIGITS_TRAIN = 1500


def read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: `uint8` images of shape `(N, 8, 8)` and their labels."""
    order = np.random.RandomState(0).permutation(1797)
    records = {"train": order[:NUM_DIGITS_TRAIN], "test": order[NUM_DIGITS_TRAIN:]}
    if split not in records:
        raise InputError(
            f"The digits have the splits 'train' and 'test' only, so pass one of them instead of {split!r}."
        )
    digits = load_scikit_learn_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)
    return images[records[split]], digits.target[records[split]]


def load_from_hub(name: str, split: str) -> datasets.Dataset:
    """One split of a data set on the Hub."""
    try:
        # One request first, because `load_dataset` retries for long before it says that the Hub is out of reach. Who
        # has chosen to be offline is served from the cache.
        with contextlib.suppress(OfflineModeIsEnabled):
            HfApi().dataset_info(name, timeout=HUB_TIMEOUT_SECONDS)
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # the Hub client, its HTTP library and `datasets` each raise their own
        raise InputError(
            f"The split {split!r} of {name!r} cannot be loaded from the Hub ({_reason(error)}), so check its name and "
            "your connection, set HF_HUB_OFFLINE=1 to use a cached copy, or pass a local copy as --train_data_dir."
        ) from error


def load_from_directory(directory: Path, split: str, unconditional: bool, cache_dir: str) -> datasets.Dataset:
    """One split of what `datasets` saved, of parquet files or of image files."""
    try:
        if (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file():
            return _load_saved(directory, split)
        if files := [path for path in sorted(directory.rglob("*.parquet")) if path.name != "metadata.parquet"]:
            return _load_parquet(directory, files, split, cache_dir)
        return _load_image_files(directory, split, unconditional, cache_dir)
    except InputError:
        raise
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise InputError(
            # The error's own words may have the names of files, which are as sensitive as the images.
            f"{directory} cannot be read as saved data set, IDX, parquet or image files ({type(error).__name__}), so "
            "check what --train_data_dir holds."
        ) from None


def _load_saved(directory: Path, split: str) -> datasets.Dataset:
    saved = datasets.load_from_disk(str(directory))
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved, str(saved.split): saved}
    if split not in splits:
        raise _no_such_split(directory, split)
    return splits[split]


def _load_parquet(directory: Path, files: list[Path], split: str, cache_dir: str) -> datasets.Dataset:
    def splits_in_name(path: Path) -> set[str]:
        return SPLIT_DIRECTORIES & {path.parent.name, *re.split(r"[-_.]", path.name)}

    chosen = [path for path in files if split in splits_in_name(path)]
    if not chosen and split == "train":
        chosen = [path for path in files if not splits_in_name(path)]
    if not chosen:
        raise _no_such_split(directory, split)
    paths = [glob.escape(str(path.resolve())) for path in chosen]
    return datasets.load_dataset("parquet", data_files={split: paths}, split=split, cache_dir=cache_dir)


def _load_image_files(directory: Path, split: str, unconditional: bool, cache_dir: str) -> datasets.Dataset:
    # Left to itself, `datasets` takes any name with "train" or "test" in it for a split, a class or a file as much as
    # a directory, and drops all others without a word. So the split's directory is found here.
    directories = set(_directories(directory))
    has_splits = bool(directories) and directories <= SPLIT_DIRECTORIES
    if split in directories and not has_splits:
        raise InputError(
            f"{directory / split} may be a split or a class, since not all directories beside it are splits, so pass "
            "it as --train_data_dir if it is the split and rename it if it is a class."
        )
    if split not in directories and (has_splits or split != "train"):
        raise _no_such_split(directory, split)
    root = directory / split if has_splits else directory
    images = [path for path in root.rglob("*") if path.suffix.lower() in PIL.Image.registered_extensions()]
    if not images:
        raise InputError(f"{root} holds no images, so pass the directory that does as --train_data_dir.")
    options: dict[str, Any] = {"drop_labels": True}
    classes = _directories(root)
    if len(classes) > 1 and not unconditional and not any(root.rglob("metadata.*")):
        # `datasets` would take the classes from the records, and drop them where an image lies elsewhere.
        if any(path.parent.parent != root for path in images):
            raise InputError(
                f"Not all images in {root} lie directly in the directory of a class, so move those that do not or pass "
                "--unconditional to ignore the directories."
            )
        label = datasets.ClassLabel(names=classes)
        options = {"drop_labels": False, "features": datasets.Features(image=datasets.Image(), label=label)}
    files = {split: f"{glob.escape(str(root.resolve()))}/**"}
    return datasets.load_dataset("imagefolder", data_files=files, split=split, cache_dir=cache_dir, **options)


def _directories(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _no_such_split(directory: Path, split: str) -> InputError:
    return InputError(f"{directory} has no split {split!r}, so pass one that it has or another --train_data_dir.")


def _reason(error: Exception) -> str:
    """An error of a library in the first sentence of its own words."""
    first_line = f"{error}\n".splitlines()[0]
    return f"{type(error).__name__}: {first_line.split('. ')[0].rstrip('.:')}"
