"""Images that are held out are not trained on, and do not become a class."""

from pathlib import Path

import pytest

from diffusers_dp_curriculum import load_image_dataset
from diffusers_dp_curriculum.data.splits import parts_of_one_whole, split_named, splits_of_path
from helpers.image_data import CLASSES, GREY, refused, write_images


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train", "test", "docs"], ["test", "train"]),
        (["Training", "validation_set", "cat"], ["Training", "validation_set"]),
        (["seg_train", "seg_test", "seg_pred"], ["seg_test", "seg_train"]),
        (["train", "cat"], []),
        (["trainA", "trainB", "testA", "testB"], ["testA", "testB", "trainA", "trainB"]),
        (["train2017", "val2017"], ["train2017", "val2017"]),
        (["test1", "test2"], []),
        (["valid", "invalid"], []),
        (["train track", "test tube"], []),
    ],
)
def test_names_that_differ_in_the_split_alone(names, expected):
    assert parts_of_one_whole(names) == expected


def test_names_of_splits():
    assert [split_named(name) for name in ("TRAIN", "test-images", "dev", "training day", "cat")] == [
        *("train", "test", "validation"),
        *(None, None),
    ]
    assert splits_of_path(Path("Test/a/b-0.parquet")) == {"test"}


@pytest.mark.parametrize("parent", ["data", "data/more", "cat"])
@pytest.mark.parametrize("splits", [("train", "test"), ("Training", "Testing"), ("seg_train", "seg_test")])
@pytest.mark.parametrize("unconditional", [True, False])
def test_splits_below_the_directory_are_not_mixed(tmp_path, parent, splits, unconditional):
    for split in splits:
        write_images(tmp_path / parent / split / "cat", GREY[:1])
        write_images(tmp_path / parent / split / "dog", GREY[1:2])
    with refused(f"The directories {' and '.join(sorted(splits))} in .* look like splits, .* pass the one to train"):
        load_image_dataset(train_data_dir=str(tmp_path), unconditional=unconditional)
    if splits[0] == "train":
        assert load_image_dataset(train_data_dir=str(tmp_path / parent)).class_names == CLASSES


@pytest.mark.parametrize("splits", [("Train", "Test"), ("train_set", "test_set"), ("TRAINING", "VALID")])
def test_splits_are_recognized_however_they_are_spelled(tmp_path, splits):
    write_images(tmp_path / splits[0], GREY[:3])
    write_images(tmp_path / splits[1], GREY[3:5])
    (tmp_path / "__MACOSX").mkdir()
    dataset = load_image_dataset(train_data_dir=str(tmp_path))
    assert (len(dataset), dataset.class_names) == (3, None)


def test_a_held_out_directory_does_not_become_a_class(tmp_path):
    for name in ("invalid", "valid", "unknown"):
        write_images(tmp_path / name, GREY[:1])
    with refused("may be a split or a class, .* rename a class, or name the classes by `class_names`"):
        load_image_dataset(train_data_dir=str(tmp_path))
    names = ["invalid", "valid", "unknown"]
    assert load_image_dataset(train_data_dir=str(tmp_path), class_names=names).class_names == names


def test_two_directories_for_one_split_are_refused(tmp_path):
    write_images(tmp_path / "Train", GREY[:1])
    write_images(tmp_path / "training", GREY[1:2])
    with refused("has several directories for the split 'train', Train and training"):
        load_image_dataset(train_data_dir=str(tmp_path))
