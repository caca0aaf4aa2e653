"""What is wrong with parquet files and saved data sets is said of each file, and files are named to the owner alone."""

import errno
import json

import datasets
import pandas
import pytest

from diffusers_dp_curriculum import StorageError, load_image_dataset
from helpers.image_data import labelled, read_list, refused


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


PARQUET = {
    "empty": ("empty", lambda path: path.write_bytes(b"")),
    "pointer": ("pointers of Git LFS", lambda path: path.write_bytes(POINTER)),
    "cut off": ("damaged or cut off", lambda path: path.write_bytes(path.read_bytes()[:-9])),
    "another table": ("other columns or classes", lambda path: pandas.DataFrame({"age": [1]}).to_parquet(path)),
    "other order of classes": (
        "other columns or classes",
        lambda path: labelled(names=["dog", "cat"]).to_parquet(path),
    ),
}


@pytest.mark.parametrize("name", PARQUET)
def test_a_parquet_file_that_cannot_be_used(name, tmp_path):
    for file in ("patient0.parquet", "patient1.parquet"):
        labelled().to_parquet(tmp_path / file)
    what, spoil = PARQUET[name]
    spoil(tmp_path / "patient1.parquet")
    with refused(rf"1 of 2 files cannot be used \(1 .*{what}") as caught:
        load_image_dataset(train_data_dir=str(tmp_path))
    assert "patient" not in str(caught.value)
    assert read_list(caught)[0].startswith(str(tmp_path / "patient1.parquet"))


SAVED = {
    "records missing": ("missing", "*.arrow", lambda path: path.unlink()),
    "records not fetched": ("pointers of Git LFS", "*.arrow", lambda path: path.write_bytes(POINTER)),
    "records cut off": ("damaged or cut off", "*.arrow", lambda path: path.write_bytes(path.read_bytes()[:300])),
    "schema missing": ("missing", "dataset_info.json", lambda path: path.unlink()),
    "schema cut off": ("damaged or cut off", "dataset_info.json", lambda path: path.write_text("{")),
    "state of something else": ("damaged or cut off", "state.json", lambda path: path.write_text("{}")),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_data_set_that_cannot_be_used(name, tmp_path):
    labelled().save_to_disk(tmp_path)
    what, pattern, spoil = SAVED[name]
    (path,) = tmp_path.glob(pattern)
    spoil(path)
    with refused(rf"1 of 3 files cannot be used \(1 {what}\)") as caught:
        load_image_dataset(train_data_dir=str(tmp_path))
    assert read_list(caught)[0].startswith(str(path))


def test_a_split_that_is_not_there_and_a_list_of_splits_that_is_none(tmp_path):
    datasets.DatasetDict(train=labelled()).save_to_disk(tmp_path)
    (tmp_path / "train" / "state.json").unlink()
    with refused(r"1 of 3 files cannot be used \(1 missing\)"):
        load_image_dataset(train_data_dir=str(tmp_path))
    (tmp_path / "dataset_dict.json").write_text(json.dumps(["train"]))
    with refused("damaged or cut off"):
        load_image_dataset(train_data_dir=str(tmp_path))


def test_a_data_set_of_another_version_of_datasets(tmp_path):
    labelled().save_to_disk(tmp_path)
    replace(tmp_path / "dataset_info.json", "ClassLabel", "FeatureOfTheFuture")
    with refused(rf"cannot be read by datasets {datasets.__version__} \(ValueError\), .*: save it again"):
        load_image_dataset(train_data_dir=str(tmp_path))


def test_a_full_disk_is_called_that(tmp_path, monkeypatch):
    def fill(*args, **options):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise datasets.exceptions.DatasetGenerationError("patient-4711") from error

    labelled().to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(datasets, "load_dataset", fill)
    with refused("The disk that holds .* is full, .*: make room", StorageError):
        load_image_dataset(train_data_dir=str(tmp_path))
