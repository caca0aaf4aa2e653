"""Where a list of classes comes from.

The list is published, so it must not follow from which records there are: with a list read from the records, one
record could add the name of its class to it.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from ..errors import InputError
from .columns import image_paths


@dataclass
class Source:
    """The records of one split as a loader hands them on, and what it knows of them besides.

    Args:
        dataset (`datasets.Dataset`): The records.
        declared (`datasets.Features`, *optional*): The columns as somebody has declared them, whatever the records are.
        declared_by (`str`): Where they are declared, in words that follow the list of classes.
        provenance (`dict[str, str]`): What the plan says of the source, by the title of the line.
        told_apart (`bool`): Whether the files lie in several directories, which may be classes.
    """

    dataset: datasets.Dataset
    declared: datasets.Features | None = None
    declared_by: str = ""
    provenance: dict[str, str] = field(default_factory=dict)
    told_apart: bool = False


def find_classes(source: Source, label_column: str, accept_found_classes: bool) -> tuple[list[str] | None, str]:
    """The classes of a column, and who declares them; None if nobody does.

    Args:
        source ([`Source`]): The records.
        label_column (`str`): The column of labels.
        accept_found_classes (`bool`): Whether to take a list that may follow from which records there are.

    Raises:
        InputError: If there is such a list and it is not accepted.
    """
    if names := _declared_names(source.declared, label_column):
        return names, source.declared_by
    names = _declared_names(source.dataset.features, label_column)
    doubt = None if names is None else _doubt(source.dataset, names)
    if names is None or doubt is None:
        return names, f"as the column {label_column!r} declares them"
    if accept_found_classes:
        return names, f"accepted although they {doubt}"
    raise InputError(
        f"The classes {doubt}, so that one record may add its own to what is published: pass the list as `class_names` "
        f"{shlex.join(names)} (in Python, {names}), or accept it as it is with `accept_found_classes`."
    )


def check_no_classes_are_lost(source: Source) -> None:
    """Refuse records without labels whose files lie in directories that may be classes.

    `datasets` drops the directories without a word where one image lies deeper than the others, or where any directory
    has metadata.
    """
    of_folder = _is_of_folder(source.dataset)
    if source.told_apart or (of_folder and in_several_directories(map(Path, image_paths(source.dataset)))):
        raise InputError(
            "The images lie in several directories, which may be classes, but no column is declared to hold labels: "
            f"pass `label_column` with one of {', '.join(source.dataset.features)}, or `unconditional` to ignore the "
            "directories."
        )


def in_several_directories(files: Iterable[Path]) -> bool:
    """Whether files are told apart by the directories that they lie in."""
    return len({path.parent for path in files}) > 1


def describe_classes(class_names: list[str], origin: str) -> str:
    """What the plan says of the classes: their indices, and where the list comes from."""
    names = ", ".join(f"{index} = {name}" for index, name in enumerate(class_names))
    return f"{names}: {origin}; published with the model"


def _doubt(dataset: datasets.Dataset, class_names: list[str]) -> str | None:
    """Why a list of classes in the features of a data set may follow from its records; None if it does not.

    A list that `datasets` has made of directories is known by the builder that has read the data set or any of its
    files, whatever was done with it since. A list that is not in the schema with which these files were stored was
    made later, for instance by `class_encode_column`. Of a data set that no builder has read nothing can be told: the
    code that made it declares its features.
    """
    stored = _stored_infos(dataset)
    if _is_of_folder(dataset):
        return "may be those directories alone that hold an image"
    lists = [_declared_names(info.features, column) for info in stored for column in info.features or {}]
    if (stored or dataset.info.builder_name) and class_names not in lists:
        return "are not in the schema with which the data set was stored, and may have been read from its records"
    return None


def _is_of_folder(dataset: datasets.Dataset) -> bool:
    """Whether `datasets` has found any of the records in a directory of files, as its builder "imagefolder" does."""
    return any((info.builder_name or "").endswith("folder") for info in [dataset.info, *_stored_infos(dataset)])


def _declared_names(features: datasets.Features | None, column: str) -> list[str] | None:
    feature = (features or {}).get(column)
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def _stored_infos(dataset: datasets.Dataset) -> list[datasets.DatasetInfo]:
    """What `datasets` has noted beside the files that the data set is read from."""
    directories = {Path(file["filename"]).parent for file in dataset.cache_files}
    return [
        datasets.DatasetInfo.from_directory(str(directory))
        for directory in sorted(directories)
        if (directory / datasets.config.DATASET_INFO_FILENAME).is_file()
    ]
