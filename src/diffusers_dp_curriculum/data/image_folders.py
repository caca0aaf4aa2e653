"""Loads directories of image files: decides which files are records and which directories are classes."""

import glob
import os
from pathlib import Path

import datasets
import PIL.Image
import PIL.ImageFile

from ..errors import InputError
from .class_lists import Source, in_several_directories
from .columns import image_paths
from .file_inventory import FileInventory


SPLIT_DIRECTORIES = {"train", "test", "validation", "valid", "val"}

# The only names that `datasets` treats as metadata; "metadata.png" is an image.
METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}

FROM_DIRECTORIES = "taken from the directories found, also empty ones (`class_names` fixes the list)"


def load_image_folder(
    directory: Path,
    files: FileInventory,
    split: str,
    *,
    class_names: list[str] | None,
    unconditional: bool,
    cache_dir: str,
) -> Source:
    """Load one split of the image files in a directory.

    If there are metadata files of `datasets`, they say which images are records and what their labels are. Otherwise
    all images are records, and the directories are the classes if there are at least two, or one if `class_names` is
    given.

    Args:
        directory (`Path`): The directory.
        files (`FileInventory`): All files of the directory; those that are not used are marked in it.
        split (`str`): The name of the split.
        class_names (`list[str]`, *optional*): The classes, in order; the directories by default.
        unconditional (`bool`): Whether to ignore the directories.
        cache_dir (`str`): The directory for the cache of `datasets`.

    Raises:
        InputError: If the split does not exist, holds no images, or its directories do not fit the classes.
    """
    # `datasets` itself would treat any name of a class, file or directory that contains "train" or "test" as a split,
    # silently drop unknown files, and read the classes from the records. So files and classes are found here.
    root = find_split(directory, split)
    files.leave_out(f"not in the split {split!r}", lambda path: not path.is_relative_to(root))
    suffixes = _readable_suffixes()
    files.leave_out(
        "in no format that Pillow reads", lambda path: path.suffix.lower() not in suffixes and path.name not in METADATA
    )
    images = [path for path in files.used if path.name not in METADATA]
    if not images:
        others = files.left_out_of(root)
        found = f", only {files.count(others)}" if others else ""
        raise InputError(f"{root} holds no images{found}: pass the directory with the images as `train_data_dir`.")
    several_directories = in_several_directories(images)

    has_metadata = len(images) < len(files.used)
    if has_metadata:
        dataset = _load_metadata(root, files, split, cache_dir)
        return Source(
            dataset, dataset.features, "as the metadata declare them", files.provenance(), several_directories
        )

    directories = _directories(root)
    if unconditional or len(directories) < (2 if class_names is None else 1):
        if several_directories and not unconditional:
            raise _not_all_in_classes(root)
        if class_names is not None and not unconditional:
            raise InputError(
                f"Class names are given but {root} has no directories: put the images of each class into a directory "
                "of its own, or leave out `class_names`."
            )
        return Source(_records(images, None, None), provenance=files.provenance())

    classes = class_names or directories
    _check_classes(root, images, classes, files)
    dataset = _records(images, [path.parent.name for path in images], classes)
    return Source(dataset, dataset.features, FROM_DIRECTORIES, files.provenance())


def _check_classes(root: Path, images: list[Path], classes: list[str], files: FileInventory) -> None:
    """Refuse images outside of the directories of the classes, and a class none of whose files can be used."""
    if any(path.parent.parent != root for path in images):
        raise _not_all_in_classes(root)
    with_images = {path.parent.name for path in images}
    if strange := sorted(with_images - set(classes)):
        raise InputError(
            f"The directories {', '.join(strange)} hold images but are none of the classes {', '.join(classes)}: add "
            "them to `class_names`, or move them elsewhere."
        )
    for name in classes:
        if name not in with_images and (left_out := files.left_out_of(root / name)):
            raise InputError(
                f"The directory of the class {name} holds nothing that can be used, only {files.count(left_out)}: "
                "convert that to PNG or JPEG, or move it elsewhere."
            )


def find_split(directory: Path, split: str) -> Path:
    """Find the directory of a split: the one of that name if all directories have names of splits, else `directory`."""
    directories = set(_directories(directory))
    has_splits = bool(directories) and directories <= SPLIT_DIRECTORIES
    if split in directories and not has_splits:
        raise InputError(
            f"{directory / split} may be a split or a class, since not all directories beside it are splits: pass it "
            "as `train_data_dir` if it is the split, and rename it if it is a class."
        )
    if split not in directories and (has_splits or split != "train"):
        raise no_such_split(directory, split)
    return directory / split if has_splits else directory


def no_such_split(directory: Path, split: str) -> InputError:
    """Make the error for a split that does not exist."""
    return InputError(f"{directory} has no split {split!r}: pass one that it has, or another `train_data_dir`.")


def _load_metadata(root: Path, files: FileInventory, split: str, cache_dir: str) -> datasets.Dataset:
    """Load the records that the metadata lists, without using the names of directories."""
    pattern = {split: f"{glob.escape(str(root.resolve()))}/**"}
    try:
        dataset = datasets.load_dataset(
            "imagefolder", data_files=pattern, split=split, cache_dir=cache_dir, drop_labels=True
        )
    except Exception as error:  # of any type for a malformed table; its message may quote the content
        raise InputError(
            f"The metadata in {root} cannot be read ({type(error).__name__}): give them all one format and a column "
            "file_name (all in UTF-8), or another name if they are something else."
        ) from None
    named = {os.path.realpath(path) for path in image_paths(dataset)}
    files.leave_out(
        "not named in the metadata", lambda path: path.name not in METADATA and os.path.realpath(path) not in named
    )
    return dataset


def _records(images: list[Path], labels: list[str] | None, class_names: list[str] | None) -> datasets.Dataset:
    columns = {"image": [str(path.absolute()) for path in images]}
    features = datasets.Features(image=datasets.Image())
    if labels is not None:
        columns["label"], features["label"] = labels, datasets.ClassLabel(names=class_names)
    return datasets.Dataset.from_dict(columns, features=features)


def _readable_suffixes() -> set[str]:
    """The suffixes of the formats that Pillow decodes, without those that it only recognizes, such as HDF5."""
    suffixes = PIL.Image.registered_extensions()
    decoders = {name: opener for name, (opener, _) in PIL.Image.OPEN.items()}
    return {
        suffix
        for suffix, name in suffixes.items()
        if name in decoders
        and not (isinstance(decoders[name], type) and issubclass(decoders[name], PIL.ImageFile.StubImageFile))
    }


def _directories(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _not_all_in_classes(root: Path) -> InputError:
    return InputError(
        f"Not all images in {root} lie directly in the directory of a class: pass the directory that holds one "
        "directory per class, move the images that lie elsewhere, or pass `unconditional` to ignore the directories."
    )
