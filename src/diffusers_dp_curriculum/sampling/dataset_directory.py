"""A generated data set on disk: its files, written shard by shard, and whether it may be gone on with."""

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
from ..files import check_new_or_empty
from ..sharing.cards import update as update_card


class DatasetDirectory:
    """A data set on disk, written shard by shard, that can be left and taken up again."""

    def __init__(self, path: Path, layout: "ParquetLayout | ImageFolderLayout", settings: dict[str, Any]):
        self.path = path
        self.layout = layout
        self.settings = settings

        settings_file = path / "generation.json"
        if settings_file.is_file():
            found = json.loads(settings_file.read_text(encoding="utf-8"))
            # Either may have a setting that the other lacks, as those of churn are left out where there is none.
            different = [name for name in found | settings if found.get(name) != settings.get(name)]
            if different:
                raise InputError(
                    f"{path} holds a data set that was generated with other settings ({', '.join(different)}): choose "
                    "another directory, or repeat the settings in its generation.json."
                )
        else:
            check_new_or_empty(path)
        try:
            path.mkdir(parents=True, exist_ok=True)  # before anything is sampled for it
        except OSError as error:
            raise StorageError(f"{path} cannot be created ({error.strerror}): choose another place.") from error

    def has_shard(self, index: int, rows: range) -> bool:
        """Whether all files of a shard are there."""
        return all((self.path / name).is_file() for name in self.layout.file_names(index, rows))

    def write_shard(self, index: int, rows: range, table: pa.Table) -> None:
        """Write the images of some rows."""
        # Only images bind the directory to their settings, not a first batch that failed for want of memory.
        self._write("generation.json", json.dumps(self.settings, indent=2).encode())
        for name, content in zip(self.layout.file_names(index, rows), self.layout.contents(table), strict=True):
            self._write(name, content)

    def finish(self) -> None:
        """Write the files that come after all shards."""
        for name, content in self.layout.closing_files().items():
            self._write(name, content)

    def describe(self, privacy_json: str | os.PathLike[str], card: str) -> str:
        """Put the budget beside the images; text that people wrote into the card stays."""
        readme = self.path / "README.md"
        if readme.is_file():
            card = update_card(readme.read_text(encoding="utf-8"), card)
        self._write("privacy.json", Path(privacy_json).read_bytes())
        self._write("README.md", card.encode())
        return card

    def _write(self, name: str, content: bytes) -> None:
        """Write a file that is there whole or not at all."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(content)
        partial.replace(path)


class ParquetLayout:
    """`data/train-00000-of-0000N.parquet`, each file with its features in the schema."""

    def __init__(self, num_shards: int):
        self.num_shards = num_shards

    def file_names(self, index: int, rows: range) -> list[str]:
        """The files of a shard."""
        return [f"data/train-{index:05d}-of-{self.num_shards:05d}.parquet"]

    def contents(self, table: pa.Table) -> list[bytes]:
        """What is in each of them."""
        return [parquet_bytes(table)]

    def closing_files(self) -> dict[str, bytes]:
        """Further files, by name, that come after all shards."""
        return {}


class ImageFolderLayout:
    """`train/<class name>/<row>.png`, with file names and labels in `train/metadata.parquet`.

    Labels taken from folder names would be numbered in alphabetical order, lose characters that cannot be in a file
    name, and vanish where there is only one class; the metadata keep them, and the order of the rows.
    """

    # Read by `load_dataset`, which would otherwise take the folder of a class named "test" for a split. Given this file
    # it takes two directories of one name for the same data set, and an old one from its cache for the new, unless
    # something in here differs (`datasets.load.LocalDatasetModuleFactory` hashes the patterns, not the files).
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
            folders = [re.sub(r"[^\w -]", "_", name) for name in class_names]
            self.columns["file_name"] = [f"{folders[label]}/{row:05d}.png" for row, label in enumerate(labels)]

    def file_names(self, index: int, rows: range) -> list[str]:
        """The files of a shard."""
        return [f"train/{name}" for name in self.columns["file_name"][rows.start : rows.stop]]

    def contents(self, table: pa.Table) -> list[bytes]:
        """What is in each of them."""
        return [image["bytes"] for image in table["image"].to_pylist()]

    def closing_files(self) -> dict[str, bytes]:
        """Further files, by name, that come after all shards."""
        metadata = pa.table(self.columns, schema=self.features.arrow_schema)
        loading = self.LOADING.format(unique=uuid.uuid4())
        return {"train/metadata.parquet": parquet_bytes(metadata), ".huggingface.yaml": loading.encode()}


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the content of a parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
