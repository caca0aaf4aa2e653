"""Reads whose record each record is. The names of users are as sensitive as the images, and appear nowhere."""

import unicodedata
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import torch

from ..errors import InputError
from .columns import check_column_exists, file_of
from .unusable import STORED, list_for_owner


MAX_LISTED = 1000  # records without a user
USER_LIKE = {"user", "person", "patient", "subject", "client", "participant", "individual", "identity"}


def read_users(dataset: datasets.Dataset, user_column: str) -> torch.Tensor:
    """Number the users of all records, `int64` of shape `(N,)`, by the names in a column.

    Args:
        dataset (`datasets.Dataset`): The records.
        user_column (`str`): A column of strings or integers.

    Raises:
        InputError: If there is no such column, it holds something else, or a record has no user.
    """
    check_column_exists(dataset.features, user_column, "user_column")
    feature = dataset.features[user_column]
    names = dataset[user_column][:]
    if isinstance(feature, datasets.Value) and pa.types.is_floating(feature.pa_type):
        # Integers with an empty cell among them become floating-point numbers.
        names = [int(name) if name is not None and float(name).is_integer() else None for name in names]
    elif not (isinstance(feature, (datasets.Value, datasets.ClassLabel)) and _is_name(feature)):
        raise InputError(
            f"The column {user_column!r} holds neither strings nor integers: name another as `user_column`, which says "
            "whose image each is."
        )
    return number_users(names, lambda index: file_of(dataset, index))


def _is_name(feature: datasets.Value | datasets.ClassLabel) -> bool:
    kind = feature.pa_type
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def users_by_directory(root: Path, paths: list[Path], level: int) -> list[str]:
    """The name of the directory at a level that each file lies in.

    Args:
        root (`Path`): The directory of the data set, or of its split.
        paths (`list[Path]`): Files in it.
        level (`int`): 1 for the directories in `root`, 2 for those in them, and so on.

    Raises:
        InputError: If a file does not lie that deep.
    """
    directories = [path.relative_to(root).parts[:-1] for path in paths]
    if shallow := sum(len(parts) < level for parts in directories):
        raise InputError(
            f"Not all images in {root} lie in a directory of level {level}, which says whose they are "
            f"({shallow:,} do not): give the level of the users' directories as `user_directory_level`, 1 for those "
            "directly in the data set's."
        )
    return [parts[level - 1] for parts in directories]


def number_users(names: Sequence[Hashable], name_of: Callable[[int], str] = lambda index: STORED) -> torch.Tensor:
    """Number users in the order in which they first appear, `int64` of shape `(N,)`.

    Blanks around a name do not count, nor do different encodings of a letter: two names of one person would make two
    users of it, each protected alone.

    Args:
        names (`list`): The name of each record's user, a string or an integer.
        name_of (`Callable[[int], str]`, *optional*): The name of a record, for the owner of the data alone.

    Raises:
        InputError: If a name is missing.
    """
    names = [unicodedata.normalize("NFC", name.strip()) if isinstance(name, str) else name for name in names]
    if missing := [index for index, name in enumerate(names) if name is None or name == ""]:
        lines = [f"record {index}: {name_of(index)}: no user" for index in missing[:MAX_LISTED]]
        raise InputError(
            f"{len(missing):,} of {len(names):,} records have no user, the first of which is record {missing[0]}: say "
            f"whose they are, or remove them; {list_for_owner(lines)}."
        )
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.int64)


def describe_users(users: torch.Tensor, origin: str) -> str:
    """Describe the users for the plan, which only the owner of the data sees.

    Args:
        users (`torch.Tensor`): The number of each record's user.
        origin (`str`): Where the users come from.
    """
    sizes = torch.bincount(users)
    return (
        f"{len(sizes):,}, {origin}, with {len(users):,} images: at most {int(sizes.max()):,} each, "
        f"{int(sizes.median()):,} in the median; the number of images is not published"
    )


def advice_on_users(features: datasets.Features) -> dict[str, str]:
    """A line for the plan if a column that is not used may say whose record each is.

    Args:
        features (`datasets.Features`): The columns.
    """
    found = [name for name in features if set(name.lower().replace("-", "_").split("_")) & USER_LIKE]
    if not found:
        return {}
    return {
        "users": f"not used: the column {found[0]!r} may say whose image it is, and `user_column` {found[0]} protects "
        "all images of one person together"
    }
