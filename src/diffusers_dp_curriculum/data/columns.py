"""Finds the image and label columns of a data set, and reads the labels.

The list of classes must be declared; it is never read from the records.
"""

import math
from collections.abc import Callable, Hashable
from fractions import Fraction
from typing import Any

import datasets
import pyarrow as pa
import torch

from ..errors import InputError
from .class_names import NUMBER, checked_class_names, one_spelling
from .unusable import STORED, list_for_owner


MAX_LISTED = 1000  # records with wrong labels

LABEL_LIKE = {"label", "labels", "class", "classes", "target"}

# Names of classes that are values of labels, besides numbers.
BOOLEANS = {"false": 0, "no": 0, "f": 0, "n": 0, "0": 0, "true": 1, "yes": 1, "t": 1, "y": 1, "1": 1}


def find_image_column(features: datasets.Features, image_column: str | None) -> str:
    """Find the image column: the one that is asked for, or else the only one."""
    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if image_column is not None:
        check_column_exists(features, image_column, "image_column")
        if image_column not in columns and not _may_be_images(features[image_column]):
            raise InputError(
                f"The column {image_column!r} does not hold images: name another as `image_column`, or cast it to "
                "datasets.Image first."
            )
        return image_column
    if not columns:
        raise InputError(
            f"The data set has no image column among {', '.join(features)}: pass the one that holds encoded images or "
            "their paths as `image_column`, or cast it to datasets.Image first."
        )
    if len(columns) > 1:
        raise InputError(
            f"The data set has several image columns ({', '.join(columns)}): pass one of them as `image_column`."
        )
    return columns[0]


def _may_be_images(feature: Any) -> bool:
    """Whether a column may hold encoded images or paths, as parquet files do that `datasets` has not written."""
    if isinstance(feature, dict):
        return feature.keys() == {"bytes", "path"}
    return isinstance(feature, datasets.Value) and (_is_string(feature) or _is_binary(feature))


def find_label_column(
    features: datasets.Features, label_column: str | None, class_names: list[str] | None
) -> str | None:
    """Find the label column: the one asked for, or else the only one that declares classes; None without labels."""
    if label_column is not None:
        check_column_exists(features, label_column, "label_column")
        return label_column
    columns = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(columns) > 1:
        raise InputError(
            f"The data set has several label columns ({', '.join(columns)}): pass one of them as `label_column`."
        )
    if not columns and class_names is not None:
        raise InputError(
            "Class names are given but no column is declared to hold labels: pass `label_column` with one of "
            f"{', '.join(features)}."
        )
    undeclared = [name for name in features if name.lower() in LABEL_LIKE]
    if not columns and undeclared:
        raise InputError(
            f"The column {undeclared[0]!r} does not declare its classes: pass `label_column` {undeclared[0]} with "
            "`class_names`, or `unconditional` to ignore it."
        )
    return columns[0] if columns else None


def check_column_exists(features: datasets.Features, column: str, option: str) -> None:
    """Refuse a column that the data set does not have; `option` is the argument that names it."""
    if column not in features:
        raise InputError(f"There is no column {column!r}: pass `{option}` with one of {', '.join(features)}.")


def image_paths(dataset: datasets.Dataset) -> set[str]:
    """The paths of the image files that a data set refers to; images stored in the data set itself have none."""
    paths = set()
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            encoded = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
            paths |= {image["path"] for image in encoded[column] if image and image["path"] and image["bytes"] is None}
    return paths


def paths_in_order(dataset: datasets.Dataset) -> list[str]:
    """The path of the image file of each record of a directory of image files, which has one column of images."""
    (column,) = (name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image))
    return [image["path"] for image in dataset.cast_column(column, datasets.Image(decode=False))[column]]


def read_labels(
    dataset: datasets.Dataset, label_column: str, class_names: list[str] | None
) -> tuple[torch.Tensor, list[str]]:
    """Read the labels of all records: `int64` indices of shape `(N,)`, and the names of the classes."""
    _check_no_number_is_missing(dataset, label_column)
    feature = dataset.features[label_column]
    classes: dict[Hashable, int]
    if isinstance(feature, datasets.ClassLabel):
        names = [one_spelling(name) for name in feature.names]
        class_names = class_names or checked_class_names(names) or []
        index_of = {name: index for index, name in enumerate(class_names)}
        classes = {label: index_of[name] for label, name in enumerate(names) if name in index_of}
    elif not isinstance(feature, datasets.Value) or not (_is_index(feature) or _is_string(feature)):
        raise InputError(
            f"The column {label_column!r} holds neither class labels nor integers nor booleans nor strings: store the "
            "labels as whole numbers or as text, or name another column as `label_column`."
        )
    elif class_names is None:
        raise InputError(
            f"The column {label_column!r} does not declare its classes, and they must not be read from the records: "
            "pass `class_names`."
        )
    elif _is_index(feature):
        classes = classes_of_numbers(class_names)
    else:
        classes = {name: index for index, name in enumerate(class_names)}
    labels = [one_spelling(label) if isinstance(label, str) else label for label in dataset[label_column][:]]
    return encode_labels(labels, classes, lambda index: file_of(dataset, index)), list(class_names)


def _check_no_number_is_missing(dataset: datasets.Dataset, label_column: str) -> None:
    """Refuse empty cells, which turn a column of integers into one of floating-point numbers."""
    feature = dataset.features[label_column]
    if isinstance(feature, datasets.Value) and pa.types.is_floating(feature.pa_type):
        labels = dataset[label_column][:]
        present: dict[Hashable, int] = {label: 0 for label in labels if label is not None and not math.isnan(label)}
        encode_labels(labels, present, lambda index: file_of(dataset, index))


def file_of(dataset: datasets.Dataset, index: int) -> str:
    """The name of the file that a record's image comes from, as far as the data set knows it."""
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            record = dataset.select([index]).cast_column(column, datasets.Image(decode=False))[0]
            return (record[column] or {}).get("path") or STORED
    return STORED


def classes_of_numbers(class_names: list[str]) -> dict[Hashable, int]:
    """Find the class of each integer or boolean label: the class of that name, or else the class with that index.

    Args:
        class_names (`list[str]`): The names of the classes, in order.

    Returns:
        `dict[Hashable, int]`: The index of the class for each value that a label may have.

    Raises:
        InputError: If some names are values of labels and others are not, so that a label may mean either.
    """
    words = [BOOLEANS.get(name.lower()) for name in class_names]
    named = words if None not in words else [Fraction(name) if NUMBER.fullmatch(name) else None for name in class_names]
    values = [value for value in named if value is not None]
    by_name: dict[Hashable, int] = {value: index for index, value in enumerate(named) if value is not None}
    by_index: dict[Hashable, int] = {index: index for index in range(len(class_names))}
    if len(by_name) == len(class_names):
        return by_name
    if len(by_name) == len(values) and by_name.items() <= by_index.items():  # both readings agree
        return by_index
    raise InputError(
        f"The labels are numbers, which may be names or indices of the classes {', '.join(class_names)}: name all "
        "classes by the values of the labels or none of them, or store the labels as text."
    )


def _is_index(feature: datasets.Value) -> bool:
    return pa.types.is_integer(feature.pa_type) or pa.types.is_boolean(feature.pa_type)  # booleans count as 0 and 1


def _is_binary(feature: datasets.Value) -> bool:
    return pa.types.is_binary(feature.pa_type) or pa.types.is_large_binary(feature.pa_type)


def _is_string(feature: datasets.Value) -> bool:
    return pa.types.is_string(feature.pa_type) or pa.types.is_large_string(feature.pa_type)


def encode_labels(
    labels: list[Hashable], classes: dict[Hashable, int], name_of: Callable[[int], str] = lambda index: STORED
) -> torch.Tensor:
    """Convert labels to class indices, `int64` of shape `(N,)`.

    Args:
        labels (`list`): The label of each record.
        classes (`dict[Hashable, int]`): The index of the class for each label that there may be.
        name_of (`Callable[[int], str]`, *optional*): The name of a record, for the owner of the data alone.

    Raises:
        InputError: If a label is not a class.
    """
    indices = [classes.get(label, -1) for label in labels]
    if -1 in indices:
        wrong = [index for index, label in enumerate(indices) if label == -1]
        lines = [f"record {index}: {name_of(index)}: label {labels[index]!r}" for index in wrong[:MAX_LISTED]]
        raise InputError(
            f"The label of record {wrong[0]} is missing or none of the declared classes: correct it, declare its class "
            f"with `class_names`, or pass `unconditional` (records with such labels: {len(wrong):,}; "
            f"{list_for_owner(lines)})."
        )
    return torch.tensor(indices, dtype=torch.int64)
