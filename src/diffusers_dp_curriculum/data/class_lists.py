"""Finds the list of classes, and checks that it does not depend on single records.

The list is published. If it were read from the records, one record could add the name of its class to it.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from ..errors import InputError
from .columns import image_paths
from .dataset_info import classes_in_words


@dataclass
class Source:
    """The records of one split, with what the loader knows about their columns and classes.

    Args:
        dataset (`datasets.Dataset`): The records.
        declared (`datasets.Features`, *optional*): The columns as declared independently of the records.
        declared_by (`str`): Where they are declared; printed in the plan after the list of classes.
        provenance (`dict[str, str]`): Lines about the source for the plan, by their titles.
        several_directories (`bool`): Whether the files lie in several directories, which may be classes.
        users (`list[str]`, *optional*): The name of each record's user, if directories tell it.
    """

    dataset: datasets.Dataset
    declared: datasets.Features | None = None
    declared_by: str = ""
    provenance: dict[str, str] = field(default_factory=dict)
    several_directories: bool = False
    users: list[str] | None = None


def find_classes(source: Source, label_column: str, accept_found_classes: bool) -> tuple[list[str] | None, str]:
    """Find the declared classes of a column.

    Args:
        source ([`Source`]): The records.
        label_column (`str`): The column of labels.
        accept_found_classes (`bool`): Whether to accept a list that may depend on which records there are.

    Returns:
        `tuple[list[str] or None, str]`: The classes, None if none are declared, and where they are declared, in words.

    Raises:
        InputError: If the list may depend on the records and is not accepted.
    """
    if names := _declared_names(source.declared, label_column):
        return names, source.declared_by
    names = _declared_names(source.dataset.features, label_column)
    doubt = None if names is None else _doubt_about_classes(source.dataset, names)
    if names is None or doubt is None:
        return names, f"as the column {label_column!r} declares them"
    if accept_found_classes:
        return names, f"accepted although they {doubt}"
    raise InputError(
        f"The classes {doubt}, so that one record may add a class to what is published: pass the list as `class_names` "
        f"{shlex.join(names)} (in Python, {names}), or accept it as it is with `accept_found_classes`."
    )


def check_no_classes_are_lost(source: Source) -> None:
    """Refuse records without labels whose files lie in directories that may be classes.

    `datasets` silently ignores the directories if one image lies deeper than the others, or if any directory has
    metadata.

    Args:
        source ([`Source`]): The records.

    Raises:
        InputError: If the files lie in several directories.
    """
    unexplained = source.users is None and is_from_folder(source.dataset)
    if source.several_directories or (unexplained and in_several_directories(map(Path, image_paths(source.dataset)))):
        raise InputError(
            "The images lie in several directories, which may be classes, but no column is declared to hold labels: "
            f"pass `label_column` with one of {', '.join(source.dataset.features)}, or `unconditional` to ignore the "
            "directories."
        )


def in_several_directories(files: Iterable[Path]) -> bool:
    """Whether files lie in more than one directory."""
    return len({path.parent for path in files}) > 1


def describe_classes(class_names: list[str], origin: str) -> str:
    """Describe the classes for the plan: their indices, and where the list comes from."""
    return f"{classes_in_words(class_names)}: {origin}; published with the model"


def _doubt_about_classes(dataset: datasets.Dataset, class_names: list[str]) -> str | None:
    """Explain why a list of classes in the features of a data set may depend on its records; None if it does not.

    If `datasets` made the list from directories, the builder that read the data set, or any of its files, shows it,
    even after later changes. If the list is not in the schema with which the files were stored, it was made later, for
    instance by `class_encode_column`. A data set that no builder has read was made by code that declares its features,
    so its list is accepted.
    """
    stored = _stored_infos(dataset)
    if is_from_folder(dataset):
        return "may be those directories alone that hold an image"
    lists = [_declared_names(info.features, column) for info in stored for column in info.features or {}]
    if (stored or dataset.info.builder_name) and class_names not in lists:
        return "are not in the schema with which the data set was stored, and may have been read from its records"
    return None


def is_from_folder(dataset: datasets.Dataset) -> bool:
    """Whether `datasets` read any of the records from a directory of files, as its builder "imagefolder" does."""
    return any((info.builder_name or "").endswith("folder") for info in [dataset.info, *_stored_infos(dataset)])


def _declared_names(features: datasets.Features | None, column: str) -> list[str] | None:
    feature = (features or {}).get(column)
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def _stored_infos(dataset: datasets.Dataset) -> list[datasets.DatasetInfo]:
    """The descriptions that `datasets` has stored next to the files of the data set."""
    directories = {Path(file["filename"]).parent for file in dataset.cache_files}
    return [
        datasets.DatasetInfo.from_directory(str(directory))
        for directory in sorted(directories)
        if (directory / datasets.config.DATASET_INFO_FILENAME).is_file()
    ]
