"""Directories of image files: which files are records, and which directories are classes."""

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

# The only files that `datasets` takes for metadata; "metadata.png" is an image.
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
    """One split of the image files in a directory.

    With metadata as `datasets` reads them, the metadata say which images are records and what their labels are.
    Otherwise all images are records, and two directories or more are classes, or one if `class_names` are given.
    """
    # Left to itself, `datasets` takes any name with "train" or "test" in it for a split, a class or a file as much as a
    # directory, drops what it does not know without a word, and takes classes from the records. So all is found here.
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
        raise InputError(f"{root} holds no images{found}: pass the directory that does as `train_data_dir`.")
    told_apart = in_several_directories(images)

    has_metadata = len(images) < len(files.used)
    if has_metadata:
        dataset = _load_metadata(root, files, split, cache_dir)
        return Source(dataset, dataset.features, "as the metadata declare them", files.provenance(), told_apart)

    directories = _directories(root)
    if unconditional or (len(directories) < 2 and (class_names is None or not directories)):
        if told_apart and not unconditional:
            raise _not_all_in_classes(root)
        if class_names is not None and not unconditional:
            raise InputError(
                f"Class names are given but {root} has no directories: put the images of each class into one of its "
                "own, or leave out `class_names`."
            )
        return Source(_records(images, None, None), provenance=files.provenance())

    if any(path.parent.parent != root for path in images):
        raise _not_all_in_classes(root)
    classes = class_names or directories
    if strange := sorted({path.parent.name for path in images} - set(classes)):
        raise InputError(
            f"The directories {', '.join(strange)} hold images but are none of the classes {', '.join(classes)}: add "
            "them to `class_names`, or move them elsewhere."
        )
    for name in classes:
        left_out = files.left_out_of(root / name)
        if left_out and not any(path.parent.name == name for path in images):
            raise InputError(
                f"The directory of the class {name} holds nothing that can be used, only {files.count(left_out)}: "
                "convert that to PNG or JPEG, or move it elsewhere."
            )
    dataset = _records(images, [path.parent.name for path in images], classes)
    return Source(dataset, dataset.features, FROM_DIRECTORIES, files.provenance())


def find_split(directory: Path, split: str) -> Path:
    """The directory that holds a split: one of its name if all directories are named as splits, or the whole."""
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
    """The refusal of a split that is not there."""
    return InputError(f"{directory} has no split {split!r}: pass one that it has, or another `train_data_dir`.")


def _load_metadata(root: Path, files: FileInventory, split: str, cache_dir: str) -> datasets.Dataset:
    """The records that the metadata name, and nothing of the directories' names."""
    pattern = {split: f"{glob.escape(str(root.resolve()))}/**"}
    try:
        dataset = datasets.load_dataset(
            "imagefolder", data_files=pattern, split=split, cache_dir=cache_dir, drop_labels=True
        )
    except Exception as error:  # a table of another form makes its reader raise anything, and tell of what is in it
        raise InputError(
            f"The metadata in {root} cannot be read ({type(error).__name__}): give them all one format and a column "
            "file_name, or another name if they are something else."
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
    """The suffixes of the formats that Pillow decodes, but for those that it only recognises, such as HDF5."""
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
        "directory a class, move the images that lie elsewhere, or pass `unconditional` to ignore the directories."
    )
