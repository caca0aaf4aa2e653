"""The parquet files that are read together are the parts of one table."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from diffusers_dp_curriculum import load_image_dataset
from helpers.image_data import CLASSES, GREY, encoded, labelled, load, refused, write_images


pytestmark = pytest.mark.usefixtures("quiet")


def write(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        labelled(GREY[:2], labels=[0, 1]).to_parquet(directory / name)


@pytest.mark.parametrize(
    "names",
    [
        ("en/train-00000-of-00001.parquet", "fr/train-00000-of-00001.parquet"),
        ("data/train.parquet", "train.parquet"),
        ("small-train.parquet", "full-train.parquet"),
        ("images.parquet", "images_old.parquet"),
        ("train-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
        ("train-00000-of-00001.parquet", "train.parquet"),
    ],
)
def test_configurations_are_not_merged(tmp_path, names):
    write(tmp_path, *names)
    for options in ({}, {"accept_left_out_files": True}):
        with refused("are not the numbered parts of one table, so that an image may be in several"):
            load_image_dataset(train_data_dir=str(tmp_path), **options)


@pytest.mark.parametrize(
    "names",
    [
        ("a/train-00000-of-00002.parquet", "a/train-00001-of-00002.parquet", "a/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"),
        (
            "part-00000-7f3a1c9e-1b2c-4d5e-8f90-a1b2c3d4e5f6-c000.parquet",
            "part-00001-0f3a1c9e-1b2c-4d5e-8f90-a1b2c3d4e5f6-c000.parquet",
        ),
        ("Train/images/0.parquet", "Train/images/1.parquet", "Test/images/0.parquet"),
    ],
)
def test_parts_of_one_table_are_read_together(tmp_path, names):
    write(tmp_path, *names)
    assert len(load_image_dataset(train_data_dir=str(tmp_path))) == 4


def test_a_missing_part_is_refused(tmp_path):
    write(tmp_path, "train-00000-of-00003.parquet", "train-00002-of-00003.parquet")
    with refused("1 of 3 parquet files are missing in .*: add them, or pass `accept_left_out_files`"):
        load_image_dataset(train_data_dir=str(tmp_path))
    assert len(load_image_dataset(train_data_dir=str(tmp_path), accept_left_out_files=True)) == 4


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (("part-0.parquet", "part-3.parquet"), "2 of 4"),
        (("v2-part_1.parquet", "v2-part_3.parquet"), "1 of 3"),
        (("0000.parquet", "0001.PARQUET"), None),
        (("2024-01-05.parquet", "2024-02-07.parquet"), None),
        (("1715.parquet", "2920.parquet"), None),
    ],
)
def test_a_gap_in_the_numbers_is_a_missing_part(tmp_path, names, missing):
    write(tmp_path, *names)
    (tmp_path / "_SUCCESS").touch()
    if missing:
        with refused(f"{missing} parquet files are missing"):
            load_image_dataset(train_data_dir=str(tmp_path))
    assert len(load_image_dataset(train_data_dir=str(tmp_path), accept_left_out_files=missing is not None)) == 4


def test_a_table_without_records_is_empty(tmp_path):
    labelled(GREY[:0], labels=[]).to_parquet(tmp_path / "0.parquet")
    with refused("hold no records"):
        load_image_dataset(train_data_dir=str(tmp_path))


@pytest.mark.parametrize(
    "images",
    [
        [encoded(image)["bytes"] for image in GREY[:2]],
        [encoded(image) for image in GREY[:2]],
        pa.array([encoded(image)["bytes"] for image in GREY[:2]], pa.large_binary()),
        ["0.png", "1.png"],
    ],
)
def test_images_that_other_tools_have_written_into_a_table(tmp_path, monkeypatch, images):
    write_images(tmp_path, GREY[:2])  # the paths in the table start at the current directory
    (tmp_path / "table").mkdir()
    monkeypatch.chdir(tmp_path)
    pa.parquet.write_table(pa.table({"scan": images, "label": ["dog", "cat"]}), tmp_path / "table" / "0.parquet")
    with refused("no image column among scan, label: pass the one that holds encoded images or their paths as"):
        load(tmp_path / "table")
    dataset = load(tmp_path / "table", image_column="scan", label_column="label", class_names=CLASSES)
    np.testing.assert_array_equal(dataset.images[:, 0].numpy(), GREY[:2])
    assert dataset.labels.tolist() == [1, 0]
    with refused("1 missing|1 in no format|2 missing|2 in no format"):
        load(tmp_path / "table", image_column="label", unconditional=True)


def test_a_stray_parquet_file_does_not_replace_images(tmp_path):
    write_images(tmp_path / "cat", GREY[:2])
    write_images(tmp_path / "dog", GREY[:2])
    write(tmp_path, "features.parquet")
    with refused("would be left out, 4 .png .beside files of another format, which are read."):
        load_image_dataset(train_data_dir=str(tmp_path))
