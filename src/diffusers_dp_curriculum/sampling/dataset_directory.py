"""Writes a generated data set to disk, shard by shard, and checks whether an interrupted one can be continued."""

import contextlib
import io
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError, StorageError
from ..files import check_is_no_pattern, check_new_or_empty, storage_errors
from ..run_paths import GENERATION_SETTINGS
from ..sharing.cards import update as update_card


class DatasetDirectory:
    """A data set on disk, written shard by shard, whose generation can be interrupted and continued.

    Args:
        path (`Path`): The directory, which is created if it does not exist.
        layout (`ParquetLayout` or `ImageFolderLayout`): Names and contents of the files.
        settings (`dict`): What the images depend on; they must be the same when generation continues.

    Raises:
        InputError: If the directory holds other files, or a data set that was generated with other settings, or its
            path is a pattern.
        StorageError: If the directory cannot be created.
    """

    def __init__(self, path: Path, layout: "ParquetLayout | ImageFolderLayout", settings: dict[str, Any]):
        self.path = path
        self.layout = layout
        self.settings = settings

        check_is_no_pattern(path)
        settings_file = path / GENERATION_SETTINGS
        if settings_file.is_file():
            existing = json.loads(settings_file.read_text(encoding="utf-8"))
            # Each side may have settings that the other lacks: those of churn are left out without churn.
            different = [name for name in existing | settings if existing.get(name) != settings.get(name)]
            if different:
                raise InputError(
                    f"{path} holds a data set that was generated with other settings ({', '.join(different)}): choose "
                    "another directory, or repeat the settings in its generation.json."
                )
        else:
            check_new_or_empty(path)
        try:
            path.mkdir(parents=True, exist_ok=True)  # fail before anything is sampled
        except OSError as error:
            raise StorageError(f"{path} cannot be created ({error.strerror}): choose another directory.") from error

    def has_shard(self, index: int, rows: range) -> bool:
        """Whether all files of a shard exist."""
        return all((self.path / name).is_file() for name in self.layout.file_names(index, rows))

    def write_shard(self, index: int, rows: range, table: pa.Table) -> None:
        """Write the files of a shard, which holds the images of `rows`."""
        # The settings are written with the first images: if sampling them runs out of memory, another batch size can
        # still be chosen for the directory.
        self._write(GENERATION_SETTINGS, json.dumps(self.settings, indent=2).encode())
        for name, content in zip(self.layout.file_names(index, rows), self.layout.contents(table), strict=True):
            self._write(name, content)

    def finish(self) -> None:
        """Write the files that follow the last shard."""
        for name, content in self.layout.closing_files().items():
            self._write(name, content)

    def describe(self, privacy_json: str | os.PathLike[str], card: str) -> str:
        """Write privacy.json and the data set card; text that people added to an existing card is kept.

        Args:
            privacy_json (`str` or `os.PathLike`): The privacy.json of the model.
            card (`str`): The newly rendered card.

        Returns:
            `str`: The card as written.
        """
        readme = self.path / "README.md"
        if readme.is_file():
            card = update_card(readme.read_text(encoding="utf-8"), card)
        self._write("privacy.json", Path(privacy_json).read_bytes())
        self._write("README.md", card.encode())
        return card

    def _write(self, name: str, content: bytes) -> None:
        """Write a file so that after a crash it is either complete or absent."""
        path = self.path / name
        partial = path.with_name(f".{path.name}.partial")
        try:
            with storage_errors(self.path, "repeat the call, which continues where this one stopped"):
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(content)
        except StorageError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        partial.replace(path)


class ParquetLayout:
    """The layout `data/train-00000-of-0000N.parquet`, where each file has the features in its schema."""

    def __init__(self, num_shards: int):
        self.num_shards = num_shards

    def file_names(self, index: int, rows: range) -> list[str]:
        """The names of a shard's files."""
        return [parquet_file(index, self.num_shards)]

    def contents(self, table: pa.Table) -> list[bytes]:
        """The contents of a shard's files, in the order of `file_names`."""
        return [parquet_bytes(table)]

    def closing_files(self) -> dict[str, bytes]:
        """The files that follow the last shard: their contents by name."""
        return {}


class ImageFolderLayout:
    """The layout `train/<class name>/<row>.png`, with file names and labels in `train/metadata.parquet`.

    Labels inferred from folder names would be numbered in alphabetical order, lose characters that file names cannot
    hold, and be missing if there is only one class. The metadata keeps the labels, and the order of the rows.
    """

    # `load_dataset` reads this file; without it, the folder of a class named "test" would be loaded as a split. The
    # random description keeps `datasets` from returning another data set from its cache: for a directory with such a
    # file, `datasets.load.LocalDatasetModuleFactory` hashes the patterns and not the files, so two directories of the
    # same name would otherwise count as the same data set.
    LOADING = """\
configs:
- config_name: default
  description: {unique}
  data_files:
  - split: train
    path: train/**
"""

    def __init__(self, class_names: list[str] | None, labels: list[int] | None, num_images: int):
        self.features = datasets.Features({"file_name": datasets.Value("string")})
        self.columns: dict[str, list[Any]] = {"file_name": [f"{row:05d}.png" for row in range(num_images)]}
        if labels is not None and class_names is not None:
            self.features["label"] = datasets.ClassLabel(names=class_names)
            self.columns["label"] = labels
            # Only for people who look into the directory, so they may be cut off: no file system has longer names.
            folders = [re.sub(r"[^\w -]", "_", name)[:60] for name in class_names]
            self.columns["file_name"] = [f"{folders[label]}/{row:05d}.png" for row, label in enumerate(labels)]

    def file_names(self, index: int, rows: range) -> list[str]:
        """The names of a shard's files."""
        return [f"train/{name}" for name in self.columns["file_name"][rows.start : rows.stop]]

    def contents(self, table: pa.Table) -> list[bytes]:
        """The contents of a shard's files, in the order of `file_names`."""
        return [image["bytes"] for image in table["image"].to_pylist()]

    def closing_files(self) -> dict[str, bytes]:
        """The files that follow the last shard: their contents by name."""
        metadata = pa.table(self.columns, schema=self.features.arrow_schema)
        loading = self.LOADING.format(unique=uuid.uuid4())
        return {"train/metadata.parquet": parquet_bytes(metadata), ".huggingface.yaml": loading.encode()}


def parquet_file(index: int, num_shards: int) -> str:
    """The path of a shard's parquet file in a data set, as `datasets` names it."""
    return f"data/train-{index:05d}-of-{num_shards:05d}.parquet"


def parquet_bytes(table: pa.Table) -> bytes:
    """Serialize a table as a parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
