"""Finds out which parquet files, and which files that `datasets` has saved, cannot be used, and why.

`datasets` reports one error for a whole data set, whose text may quote records.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet

from ..errors import DPCurriculumError, InputError, StorageError
from ..files import is_full_disk
from .file_inventory import FileInventory
from .unusable import Unusable, check_content, list_for_owner, read_file, refusal


HEAD = 200  # bytes, enough to recognize a pointer to a file that was not fetched
OTHER_COLUMNS = Unusable("with other columns or classes than the first", "give all files the same columns and classes")


@contextlib.contextmanager
def check_tables(directory: Path, files: FileInventory) -> Iterator[None]:
    """A context to load a data set in, at whose end the tables are checked; an error within is explained by them.

    Args:
        directory (`Path`): The directory of the data set.
        files (`FileInventory`): Its files, of which those that are not used are marked within the context.

    Raises:
        InputError:
            If a table cannot be read, is missing, or has other columns or classes than the first; or if there was an
            error that has another cause.
        StorageError: If the disk for temporary files is full.
    """
    try:
        yield
    except DPCurriculumError:
        raise
    except Exception as error:  # of any type for damaged files; its text may name files or quote records
        raise _explanation(directory, files, error) from None
    if problems := _problems(files.used):
        raise problems


def _explanation(directory: Path, files: FileInventory, error: Exception) -> DPCurriculumError:
    if is_full_disk(error):
        return StorageError(
            f"The disk that holds {tempfile.gettempdir()} is full, and the data set needs a temporary copy there: "
            "make room, or set the environment variable TMPDIR to a directory on another disk."
        )
    return _problems(files.used) or InputError(
        f"{directory} cannot be read by datasets {datasets.__version__} ({type(error).__name__}), although each of "
        "its files can be: save it again with this version, or export it as parquet or image files; "
        f"{list_for_owner([str(error)], 'what it says is')}."
    )


def _problems(paths: Iterable[Path]) -> InputError | None:
    unusable: dict[str, Unusable] = {}
    schemas: list[tuple[Any, Any]] = []
    tables = sorted({table for path in paths for table in _tables(path)})
    for path in tables:
        try:
            columns = _columns(path)
            if columns is not None and path.suffix.lower() == ".parquet":
                schemas.append(columns)
                if not _agree(columns, schemas[0]):
                    unusable[str(path)] = OTHER_COLUMNS
        except Unusable as problem:
            unusable[str(path)] = problem
        except (pa.ArrowInvalid, OSError, ValueError, KeyError, TypeError) as error:
            unusable[str(path)] = Unusable(
                "damaged or cut off", "copy the damaged files again", f"({type(error).__name__}: {error})"
            )
    return refusal("files", len(tables), unusable) if unusable else None


def _tables(path: Path) -> list[Path]:
    """The file itself if it is a table or describes tables, and the files that it says belong to it."""
    if path.name == "state.json":
        return [path, path.parent / "dataset_info.json", *(path.parent / name for name in _names_in(path))]
    if path.name == "dataset_dict.json":
        return [path, *(path.parent / name / "state.json" for name in _names_in(path))]
    return [path] if path.suffix.lower() in (".parquet", ".arrow") else []


def _names_in(path: Path) -> list[str]:
    """The files of a saved data set, or its splits, as its description lists them; none if it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        return content["splits"] if "splits" in content else [file["filename"] for file in content["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _columns(path: Path) -> tuple[Any, Any] | None:
    """The names of the columns and the features that `datasets` has stored; None for a description of tables.

    Raises:
        Unusable: If the file cannot be read.
        Exception: If it is not in its format; PyArrow raises errors of several types.
    """
    check_content(read_file(str(path), HEAD))
    if path.suffix == ".json":
        content = json.loads(path.read_bytes())
        needed = {"state.json": "_data_files", "dataset_info.json": "features", "dataset_dict.json": "splits"}
        content[needed[path.name]]  # a `KeyError` or `TypeError` if something else has written the file
        return None
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as file:
            # Reading to the end finds a file that is cut off; the file is mapped, not copied.
            for _ in pa.ipc.open_stream(file):
                pass
        return None
    schema = pyarrow.parquet.read_schema(path)
    stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return schema.names, stored.get("info", {}).get("features")


def _agree(columns: tuple[Any, Any], first: tuple[Any, Any]) -> bool:
    names, features = columns
    return sorted(names) == sorted(first[0]) and (None in (features, first[1]) or features == first[1])
