"""Loads directories of image files: decides which files are records and which directories are classes."""

import functools
import glob
import os
import re
from fractions import Fraction
from pathlib import Path

import datasets
import PIL.Image
import PIL.ImageFile

from ..errors import InputError
from .class_lists import Source, in_several_directories
from .class_names import NUMBER, checked_class_names, one_spelling
from .columns import image_paths, paths_in_order
from .file_inventory import METADATA_ELSEWHERE, UNNAMED, FileInventory, reason_to_ignore
from .idx import is_idx
from .splits import parts_of_one_whole, split_named
from .unusable import list_for_owner
from .users import users_by_directory


# The only names that `datasets` treats as metadata; "metadata.png" is an image.
METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}

# Files that `save_to_disk` of `datasets` writes for all splits, and for one.
SAVED = {"dataset_dict.json", "state.json"}

TABLES = {".csv", ".tsv", ".jsonl"}

FROM_DIRECTORIES = "taken from the directories found, also empty ones (`class_names` fixes the list)"


def load_image_folder(
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
        accept_left_out_files (`bool`): Whether to accept that files are left out that may be records.
        user_directory_level (`int`, *optional*):
            The level of the directories of users, of which 1 is the first. The classes are then the directories of
            level 1, or of level 2 in those of users.
        cache_dir (`str`): The directory for the cache of `datasets`.

    Raises:
        InputError: If the split does not exist, holds no images or other splits, or its directories do not fit the
            classes, or if records may be lost.
    """
    # `datasets` itself would treat any name of a class, file or directory that contains "train" or "test" as a split,
    # silently drop unknown files, and read the classes from the records. So files and classes are found here.
    root = find_split(directory, split, class_names)
    files.leave_out(METADATA_ELSEWHERE, lambda path: path.parent == directory != root and path.name in METADATA)
    files.leave_out(f"not in the split {split!r}", lambda path: not path.is_relative_to(root))
    files.leave_out_unreadable(can_be_read)
    images = [path for path in files.used if path.name not in METADATA]
    if not images:
        raise _no_images(root, files.left_out_of(root), files)
    _check_no_splits_below(root, images, class_names)
    several_directories = in_several_directories(images)
    if user_directory_level is not None:
        level = user_directory_level - 1
        places = [path.relative_to(root).parts[:-1] for path in images]
        several_directories = len({(*parts[:level], *parts[level + 1 :]) for parts in places}) > 1

    has_metadata = len(images) < len(files.used)
    if has_metadata:
        dataset = _load_metadata(root, files, split, cache_dir)
        files.check_nothing_is_lost(accept_left_out_files)
        users = None
        if user_directory_level is not None:
            named = [Path(path) for path in paths_in_order(dataset)]
            users = users_by_directory(root.resolve(), named, user_directory_level)
        return Source(
            dataset, dataset.features, "as the metadata declare them", files.provenance(), several_directories, users
        )
    if user_directory_level is not None:
        return _load_with_users(
            root, images, files, user_directory_level, class_names, unconditional, accept_left_out_files
        )

    directories = _directories(root)
    if unconditional or len(directories) < (2 if class_names is None else 1):
        if several_directories and not unconditional:
            raise _not_all_in_classes(root, [path for path in images if path.parent.parent != root])
        if class_names is not None and not unconditional:
            files.check_nothing_is_lost(accept_left_out_files)  # such as metadata in another directory
            raise InputError(
                f"Class names are given but {root} has no directories: put the images of each class into a directory "
                "of its own, or leave out `class_names`."
            )
        if not unconditional:
            _check_no_table_of_labels(files.left_out_of(directory), files)
        files.check_nothing_is_lost(accept_left_out_files)
        return Source(_records(images, None, None), provenance=files.provenance())

    classes = class_names or checked_class_names([one_spelling(name) for name in directories])
    assert classes is not None
    _check_classes(root, images, classes, files)
    files.check_nothing_is_lost(accept_left_out_files)
    dataset = _records(images, [one_spelling(path.parent.name) for path in images], classes)
    return Source(dataset, dataset.features, FROM_DIRECTORIES, files.provenance())


def _no_images(root: Path, others: list[Path], files: FileInventory) -> InputError:
    found = f", only {files.count(others)}" if others else ""
    snapshots = [parent for path in others for parent in path.parents if parent.parent.name == "snapshots"]
    saved = [path.parent for path in others if path.name in SAVED or is_idx(path)]
    others_root = min(saved + snapshots, default=None)
    right = "the directory with the images" if others_root is None else f"{others_root}, which holds a data set,"
    return InputError(f"{root} holds no images{found}: pass {right} as `train_data_dir`.")


def _check_no_table_of_labels(others: list[Path], files: FileInventory) -> None:
    """Refuse to ignore tables beside images without classes; metadata of `datasets` are read before."""
    if tables := [path for path in others if path.suffix.lower() in TABLES and path.name not in METADATA]:
        raise InputError(
            f"The images have no classes, but tables that are not read may hold their labels, {files.count(tables)}: "
            "call the table metadata.csv, with a column file_name, and pass `label_column` and `class_names`, or pass "
            "`unconditional` if there are no labels."
        )


def _load_with_users(
    root: Path,
    images: list[Path],
    files: FileInventory,
    level: int,
    class_names: list[str] | None,
    unconditional: bool,
    accept_left_out_files: bool,
) -> Source:
    """Load images that lie in directories of users, which lie in directories of classes or hold them."""
    files.check_nothing_is_lost(accept_left_out_files)
    users = users_by_directory(root, images, level)
    class_level = 1 if level > 1 else 2
    deep_enough = [len(path.relative_to(root).parts) > class_level for path in images]
    if unconditional or (class_names is None and not any(deep_enough)):
        if not unconditional:
            _check_no_table_of_labels(files.left_out_of(root), files)
        return Source(_records(images, None, None), provenance=files.provenance(), users=users)
    if class_level == 2 and class_names is None:
        raise InputError(
            f"The directories in those of the users in {root} may be classes, and their list depends on the users: "
            "pass `class_names`, or `unconditional` to ignore them."
        )
    if not all(deep_enough):  # without their names, which may be those of users
        raise InputError(
            f"Not all images in {root} lie in the directory of a class ({deep_enough.count(False):,} do not): move "
            "them, or pass `unconditional` to ignore the directories of classes."
        )
    labels = [one_spelling(path.relative_to(root).parts[class_level - 1]) for path in images]
    classes = class_names or checked_class_names([one_spelling(name) for name in _directories(root)])
    assert classes is not None
    if strange := sorted(set(labels) - set(classes)):
        raise _no_classes(strange, classes)
    dataset = _records(images, labels, classes)
    return Source(dataset, dataset.features, FROM_DIRECTORIES, files.provenance(), users=users)


def _no_classes(strange: list[str], classes: list[str]) -> InputError:
    return InputError(
        f"The directories {', '.join(strange)} hold images but are none of the classes {', '.join(classes)}: add "
        "them to `class_names`, or move them elsewhere."
    )


def _check_classes(root: Path, images: list[Path], classes: list[str], files: FileInventory) -> None:
    """Refuse images outside of the directories of the classes, and a class none of whose files can be used."""
    if elsewhere := [path for path in images if path.parent.parent != root]:
        raise _not_all_in_classes(root, elsewhere)
    with_images = {one_spelling(path.parent.name) for path in images}
    if strange := sorted(with_images - set(classes)):
        raise _no_classes(strange, classes)
    for directory in _directories(root):
        name = one_spelling(directory)
        if name in classes and name not in with_images and (left_out := files.left_out_of(root / directory)):
            raise InputError(
                f"The directory of the class {name} holds nothing that can be used, only {files.count(left_out)}: "
                "convert, unpack or rename that, or move it elsewhere."
            )


def find_split(directory: Path, split: str, class_names: list[str] | None = None) -> Path:
    """Find the directory of a split: the one of that name if all directories have names of splits, else `directory`.

    Args:
        directory (`Path`): The directory of the data set.
        split (`str`): The name of the split.
        class_names (`list[str]`, *optional*): The names of classes, which are no splits.

    Raises:
        InputError: If there is no directory for the split, or it is unclear which directories are splits.
    """
    directories = _directories(directory)
    splits = [name for name in directories if split_named(name)]
    has_splits = len(directories) > 0 and len(splits) == len(directories)
    if not has_splits and (unclear := [name for name in splits if name not in (class_names or [])]):
        raise InputError(
            f"{directory / unclear[0]} may be a split or a class, since not all directories beside it are splits: pass "
            "the split as `train_data_dir`, rename a class, or name the classes by `class_names`."
        )
    if not has_splits:
        if split != "train":
            raise no_such_split(directory, split)
        return directory
    chosen = [name for name in splits if name == split] or [
        name for name in splits if split_named(name) == (split_named(split) or split)
    ]
    if not chosen:
        raise no_such_split(directory, split)
    if len(chosen) > 1:
        raise InputError(
            f"{directory} has several directories for the split {split!r}, {' and '.join(chosen)}: pass one of them as "
            "`train_data_dir`, or rename the others."
        )
    return directory / chosen[0]


def _check_no_splits_below(root: Path, images: list[Path], class_names: list[str] | None) -> None:
    """Refuse splits that would be read as one, also at another level, because one of them is to be held out."""
    beside: dict[Path, set[str]] = {}
    for place in {image.parent for image in images}:
        for directory in (place.relative_to(root), *place.relative_to(root).parents):
            if directory.name and directory.name not in (class_names or []):
                beside.setdefault(root / directory.parent, set()).add(directory.name)
    for parent, names in sorted(beside.items()):
        if splits := parts_of_one_whole(names):
            raise InputError(
                f"The directories {' and '.join(splits)} in {parent} look like splits, of which all but one are held "
                "out: pass the one to train on as `train_data_dir`, or rename them if they are none."
            )


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
            "file_name with paths inside their directory (all in UTF-8), or another name if they are something "
            f"else; {list_for_owner([str(error)], 'what `datasets` says is')}."
        ) from None
    named = {os.path.realpath(path) for path in image_paths(dataset)}
    if missing := sorted(path for path in named if not os.path.isfile(path)):
        raise InputError(
            f"The metadata in {root} name images that do not exist ({len(missing):,}): add these images, or correct "
            f"their lines; {list_for_owner(missing)}."
        )
    if len(named) < len(dataset):  # one image would be two records, and epsilon would not be for one image
        raise InputError(
            f"The metadata in {root} name images more than once ({len(dataset):,} lines for {len(named):,}): give each "
            "image one line."
        )
    files.leave_out(UNNAMED, lambda path: path.name not in METADATA and os.path.realpath(path) not in named)
    return dataset


def _records(images: list[Path], labels: list[str] | None, class_names: list[str] | None) -> datasets.Dataset:
    columns = {"image": [str(path.absolute()) for path in images]}
    features = datasets.Features(image=datasets.Image())
    if labels is not None:
        columns["label"], features["label"] = labels, datasets.ClassLabel(names=class_names)
    return datasets.Dataset.from_dict(columns, features=features)


def can_be_read(path: Path) -> bool:
    """Whether a file is, by its name, an image that Pillow decodes, or metadata of `datasets`."""
    return path.name in METADATA or path.suffix.lower() in _readable_suffixes()


@functools.cache
def _readable_suffixes() -> frozenset[str]:
    """The suffixes of the formats that Pillow decodes, without those that it only recognizes, such as HDF5."""
    suffixes = PIL.Image.registered_extensions()
    decoders = {name: opener for name, (opener, _) in PIL.Image.OPEN.items()}
    return frozenset(
        suffix
        for suffix, name in suffixes.items()
        if name in decoders
        and not (isinstance(decoders[name], type) and issubclass(decoders[name], PIL.ImageFile.StubImageFile))
    )


def _directories(root: Path) -> list[str]:
    """The names of the directories, with numbers in their order: "-1" before "2" before "10"."""
    names = [path.name for path in root.iterdir() if path.is_dir() and not reason_to_ignore(path.name)]
    return sorted(names, key=_place_in_order)


def _place_in_order(name: str) -> tuple[bool, Fraction, list[str | int], str]:
    """Numbers come first; other names are compared by their texts and numbers, which alternate."""
    is_number = NUMBER.fullmatch(name) is not None
    parts = [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]
    return not is_number, Fraction(name) if is_number else Fraction(0), parts, name


def _not_all_in_classes(root: Path, elsewhere: list[Path]) -> InputError:
    places = sorted({str(path.parent.relative_to(root)) for path in elsewhere})
    named = ", ".join("the directory itself" if place == "." else place for place in places[:3])
    more = f" and {len(places) - 3:,} more" if len(places) > 3 else ""
    return InputError(
        f"Not all images in {root} lie directly in the directory of a class, {len(elsewhere):,} lie in {named}{more}: "
        "pass the directory that holds one directory per class, move the images that lie elsewhere, pass "
        "`user_directory_level` 2 if they lie in one directory per person, or `unconditional` to ignore the "
        "directories."
    )
