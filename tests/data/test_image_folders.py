"""Directories of image files: records, classes, and what is left out."""

import contextlib
import os
import tempfile
from pathlib import Path

import datasets
import numpy as np
import PIL.features
import PIL.Image
import pytest

from diffusers_dp_curriculum import load_image_dataset, to_image_dataset
from diffusers_dp_curriculum.data.file_inventory import FileInventory
from helpers.image_data import (
    CLASSES,
    COLOUR,
    GREY,
    LABELS,
    assert_is_grey,
    labelled,
    load,
    refused,
    write_idx,
    write_images,
)


pytestmark = pytest.mark.usefixtures("quiet")


def test_image_files_with_class_directories(tmp_path):
    root = tmp_path / "images [1]"  # a name that glob would read as a pattern
    write_images(root / "dog", GREY[:2])
    write_images(root / "cat", GREY[2:5])
    dataset = load_image_dataset(train_data_dir=str(root))
    assert dataset.class_names == CLASSES
    assert dataset.labels.bincount().tolist() == [3, 2]
    for image, label in zip(dataset.images[:, 0].numpy(), dataset.labels.tolist(), strict=True):
        assert any(np.array_equal(image, original) for original in (GREY[2:5] if label == 0 else GREY[:2]))
    with refused("has no split 'test'"):
        load_image_dataset(train_data_dir=str(root), split="test")


def test_the_classes_of_image_files_are_the_directories_and_not_the_records(tmp_path):
    write_images(tmp_path / "cat", GREY[:2])
    write_images(tmp_path / "dog", GREY[2:3])
    before = load_image_dataset(train_data_dir=str(tmp_path))
    next((tmp_path / "dog").iterdir()).unlink()
    after = load_image_dataset(train_data_dir=str(tmp_path))
    assert before.class_names == after.class_names == ["cat", "dog"]
    assert (before.labels.tolist(), after.labels.tolist()) == ([0, 0, 1], [0, 0])


@pytest.mark.parametrize("elsewhere", [".", "dog/puppies"])
def test_image_files_outside_of_the_class_directories_are_refused(tmp_path, elsewhere):
    for name in ("cat", "dog", elsewhere):
        write_images(tmp_path / name, GREY[:2])
    with refused("Not all images in .* lie directly in the directory of a class"):
        load_image_dataset(train_data_dir=str(tmp_path))
    assert len(load_image_dataset(train_data_dir=str(tmp_path), unconditional=True)) == 6


def test_image_files_without_class_directories(tmp_path):
    write_images(tmp_path, GREY)
    assert_is_grey(load_image_dataset(train_data_dir=str(tmp_path)), labels=[0] * 6, class_names=None)


def test_image_files_named_as_splits_are_not_dropped(tmp_path):
    write_images(tmp_path / "cat", GREY[:2])
    write_images(tmp_path / "dog", GREY[2:4])
    PIL.Image.fromarray(GREY[4]).save(tmp_path / "dog" / "test_1.png")
    assert len(load_image_dataset(train_data_dir=str(tmp_path))) == 5


def test_image_files_in_directories_of_splits(tmp_path):
    write_images(tmp_path / "train" / "cat", GREY[:2])
    write_images(tmp_path / "train" / "dog", GREY[2:3])
    write_images(tmp_path / "test" / "cat", GREY[3:4])
    write_images(tmp_path / "test" / "dog", GREY[4:5])
    assert load_image_dataset(train_data_dir=str(tmp_path)).labels.bincount().tolist() == [2, 1]
    assert load_image_dataset(train_data_dir=str(tmp_path), split="test").labels.bincount().tolist() == [1, 1]
    with refused("has no split 'validation'"):
        load_image_dataset(train_data_dir=str(tmp_path), split="validation")


def test_a_directory_that_may_be_split_or_class_is_refused(tmp_path):
    for name in ("bus", "car", "train"):
        write_images(tmp_path / name, GREY[:1])
    with refused("may be a split or a class"):
        load_image_dataset(train_data_dir=str(tmp_path))


def test_labels_in_a_metadata_file(tmp_path):
    write_images(tmp_path, GREY)
    rows = [f"{index}.png,{CLASSES[label]}" for index, label in enumerate(LABELS)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,animal", *rows]))
    assert_is_grey(load_image_dataset(train_data_dir=str(tmp_path), label_column="animal", class_names=CLASSES))


# What is left out is counted


def write_files(directory, *names, content=b"x"):
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_bytes(content)


def test_files_are_counted_by_suffix_and_not_named(photos):
    write_files(photos, "README.md", ".DS_Store")
    write_files(photos / "cat", "a.HEIC", "b.heic", "c.dcm", "secret", "1.2.840.4711", ".hidden.png")
    write_files(photos / "dog" / ".ipynb_checkpoints", "0-checkpoint.png", "1-checkpoint.png")
    (photos / "dog" / "0.png").rename(photos / "dog" / "0.PNG")
    dataset = load(photos, accept_left_out_files=True)
    assert dataset.provenance["files"] == "19 found, 10 used, 9 left out"
    assert dataset.provenance["used"] == "10 .png"
    hidden, documents, unknown, unread = dataset.provenance["left out"].split("; ")
    assert documents == "1 .md (documents)"
    assert hidden == "2 without suffix, 1 .png (hidden)"
    assert unread.endswith(" (in no format that Pillow reads)")
    assert unknown.endswith(" (with no suffix of a format)")
    counts = [part.split(" (")[0].split(", ") for part in (unknown, unread)]
    assert [sorted(names) for names in counts] == [
        ["1 with another suffix", "1 without suffix"],
        ["1 .dcm", "2 .heic"],
    ]
    assert dataset.provenance["classes"] == (
        "0 = cat, 1 = dog: taken from the directories found, also empty ones (`class_names` fixes the list); published "
        "with the model"
    )
    assert to_image_dataset(dataset, unconditional=True).provenance.keys() == {"files", "used", "left out"}
    assert len(load(photos, unconditional=True, accept_left_out_files=True)) == 10


@pytest.mark.parametrize("suffix", [".webp", ".tif", ".JPG"])
def test_whatever_pillow_decodes_is_used(tmp_path, suffix):
    write_images(tmp_path / "cat", COLOUR[:2])
    (tmp_path / "dog").mkdir()
    PIL.Image.fromarray(COLOUR[2]).save(tmp_path / "dog" / f"0{suffix}")
    assert load(tmp_path).labels.tolist() == [0, 0, 1]


def test_avif_is_used_or_left_out(tmp_path):
    write_images(tmp_path / "cat", COLOUR[:2])
    (tmp_path / "dog").mkdir()
    if PIL.features.check("avif"):
        PIL.Image.fromarray(COLOUR[2]).save(tmp_path / "dog" / "0.avif")
        assert load(tmp_path).labels.tolist() == [0, 0, 1]
    else:
        write_files(tmp_path / "dog", "0.avif")
        with refused("class dog holds nothing that can be used, only 1 .avif"):
            load(tmp_path)


def test_what_pillow_only_recognises_is_left_out(photos):
    write_files(photos / "cat", "model.h5")
    with refused("Files that may be records would be left out, 1 .h5 .in no format that Pillow reads.: convert"):
        load(photos)
    loaded = load(photos, accept_left_out_files=True)
    assert loaded.provenance["left out"] == "1 .h5 (in no format that Pillow reads)"


def test_directories_that_are_links_are_read(photos, tmp_path):
    (photos / "dog").rename(tmp_path / "elsewhere")
    (photos / "dog").symlink_to(tmp_path / "elsewhere")
    assert load(photos).labels.bincount().tolist() == [5, 5]
    (photos / "cat" / "up").symlink_to(photos)  # a link to a parent directory
    assert load(photos).provenance["left out"] == "1 without suffix (linked to a directory that is read already)"
    (photos / "cat" / "up").unlink()
    (photos / "hound").symlink_to(tmp_path / "elsewhere")  # each image would be two records
    with refused("directory of the class hound holds nothing that can be used, only 1 without suffix .linked"):
        load(photos)
    assert len(load(photos, unconditional=True)) == 10


def test_links_to_nothing_are_counted(photos):
    for index in range(3):
        (photos / "dog" / f"{index}.png").unlink()
        (photos / "dog" / f"{index}.png").symlink_to("../../.git/annex/objects/unfetched.png")
    with refused("would be left out, 3 .png .linked to nothing.: convert, unpack, rename or fetch them"):
        load(photos)
    dataset = load(photos, accept_left_out_files=True)
    assert dataset.labels.bincount().tolist() == [5, 2]
    assert dataset.provenance["left out"] == "3 .png (linked to nothing)"
    for index in (3, 4):
        (photos / "dog" / f"{index}.png").unlink()
    with refused("class dog holds nothing that can be used, only 3 .png .linked to nothing"):
        load(photos)


@pytest.mark.parametrize("name", ["scan.heic", "scan.dcm", "IM0001", "notes.txt", "._scan.png"])
@pytest.mark.parametrize("options", [{}, {"class_names": CLASSES}])
def test_a_class_of_which_nothing_can_be_used_is_refused(photos, name, options):
    for path in (photos / "dog").iterdir():
        path.unlink()
    write_files(photos / "dog", ".gitkeep", ".DS_Store")
    assert load(photos, **options).class_names == CLASSES  # an empty directory is a class, too
    write_files(photos / "dog", name)
    with refused("The directory of the class dog holds nothing that can be used, only 1 ") as caught:
        load(photos, **options)
    assert "scan" not in str(caught.value)
    assert len(load(photos, unconditional=True, accept_left_out_files=True)) == 5


def test_a_directory_beside_the_named_classes_may_hold_anything_but_images(photos):
    write_files(photos / "docs", "notes.txt")
    with refused("class docs holds nothing that can be used, only 1 .txt"):
        load(photos)
    assert load(photos, class_names=CLASSES).provenance["left out"] == "1 .txt (documents)"
    write_images(photos / "docs", GREY[:1])
    with refused("The directories docs hold images but are none of the classes cat, dog"):
        load(photos, class_names=CLASSES)


@contextlib.contextmanager
def somebody_else():
    """A context in which the tests run without the rights of root, which may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_directory_that_cannot_be_read_is_refused():
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        Path(root, "dog").mkdir(mode=0)
        with somebody_else(), refused("A directory in .* cannot be read .PermissionError."):
            FileInventory.of_directory(Path(root))
        Path(root, "dog").chmod(0o755)


def test_a_directory_of_nothing_but_unknown_formats_says_so(tmp_path):
    write_files(tmp_path / "cat", "0.heic", "1.heic")
    with refused("holds no images, only 2 .heic .in no format that Pillow reads.: pass"):
        load(tmp_path)


def test_files_of_other_splits_are_counted(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split / "cat", GREY[:2])
        write_images(tmp_path / split / "dog", GREY[2:3])
    write_files(tmp_path, "README.md")
    assert load(tmp_path).provenance["left out"] == "3 .png, 1 .md (not in the split 'train')"


# Classes are given, or directories


def test_given_classes_need_no_directory_each(photos):
    dataset = load(photos, class_names=["bird", "dog", "cat"])
    assert dataset.class_names == ["bird", "dog", "cat"]
    assert dataset.labels.bincount().tolist() == [0, 5, 5]
    for path in (photos / "dog").iterdir():
        path.unlink()
    (photos / "dog").rmdir()
    dataset = load(photos, class_names=["bird", "dog", "cat"])  # one directory, and classes
    assert dataset.class_names == ["bird", "dog", "cat"]
    assert dataset.labels.tolist() == [2] * 5
    assert load(photos).class_names is None  # all records would have the same label


def test_given_classes_need_directories(tmp_path):
    write_images(tmp_path, GREY)
    with refused("Class names are given but .* has no directories"):
        load(tmp_path, class_names=CLASSES)
    assert load(tmp_path, class_names=CLASSES, unconditional=True).class_names is None


@pytest.mark.parametrize("places", [("images/cat", "images/dog"), (".", "dog"), ("data/train/cat", "more/cat")])
def test_directories_that_may_be_classes_are_not_ignored_silently(tmp_path, places):
    for place in places:
        write_images(tmp_path / place, GREY[:2])
    with refused("Not all images in .* lie directly in the directory of a class"):
        load(tmp_path)
    assert len(load(tmp_path, unconditional=True)) == 4


@pytest.mark.parametrize("place", [".", "train", "train/images"])
def test_a_table_beside_images_without_classes_may_hold_their_labels(tmp_path, place):
    write_images(tmp_path / place, GREY[:3])
    write_images(tmp_path / "test" if place != "." else tmp_path, GREY[:3])
    (tmp_path / "labels.csv").write_text("id,label\n0,cat\n")
    with refused("tables that are not read may hold their labels, 1 .csv .*: call the table metadata.csv, .*"):
        load(tmp_path)
    assert len(load(tmp_path, unconditional=True)) == 3


def test_a_data_set_of_another_kind_below_the_directory_is_named(tmp_path):
    labelled().save_to_disk(tmp_path / "saved" / "here")
    with refused("holds no images, only .*: pass .*/saved/here, which holds a data set, as `train_data_dir`"):
        load(tmp_path)
    assert_is_grey(load(tmp_path / "saved" / "here"))
    (tmp_path / "mnist" / "raw").mkdir(parents=True)
    write_idx(tmp_path / "mnist" / "raw" / "train-images-idx3-ubyte", GREY)
    with refused("holds no images, only 1 .*: pass .*/mnist/raw, which holds"):
        load(tmp_path / "mnist")


def test_images_in_a_single_directory_have_no_classes(tmp_path):
    write_images(tmp_path / "images", GREY)
    dataset = load(tmp_path)
    assert_is_grey(dataset, labels=[0] * 6, class_names=None)
    assert dataset.provenance == {"files": "6 found, 6 used, 0 left out", "used": "6 .png"}


# Metadata


@pytest.mark.parametrize("name", ["metadata.png", "metadata.txt", "metadata.json", "METADATA.CSV", ".metadata.csv"])
@pytest.mark.parametrize("place", [".", "cat", "dog"])
def test_other_files_called_metadata_change_nothing(photos, name, place):
    if name.endswith(".png"):
        place = "cat" if place == "." else place
        PIL.Image.fromarray(GREY[5]).save(photos / place / name)
    else:
        write_files(photos / place, name)
    dataset = load(photos)
    assert dataset.class_names == CLASSES
    assert len(dataset) == 10 + name.endswith(".png")


def write_metadata(directory, name, columns, features=None):
    table = datasets.Dataset.from_dict(columns, features=features)
    write = {".csv": table.to_csv, ".jsonl": table.to_json, ".parquet": table.to_parquet}[name[name.index(".") :]]
    write(str(directory / name), **({"index": False} if name.endswith("csv") else {}))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
@pytest.mark.parametrize("place", [".", "cat"])
def test_metadata_without_labels_beside_classes_is_refused(photos, name, place):
    (photos / place).mkdir(exist_ok=True)
    files = [f"{'cat/' if place == '.' else ''}{index}.png" for index in range(5)]
    write_metadata(photos / place, name, {"file_name": files, "age": list(range(5))})
    for options in ({}, {"unconditional": True}, {"label_column": "age", "class_names": list("abcde")}):
        with refused("would be left out, 5 .png .not named in the metadata.: convert"):
            load(photos, **options)
    with refused("The images lie in several directories, .* pass `label_column` with one of image, age, or `uncond"):
        load(photos, accept_left_out_files=True)
    ignored = load(photos, unconditional=True, accept_left_out_files=True)
    assert len(ignored) == 5
    assert ignored.provenance["left out"] == "5 .png (not named in the metadata)"
    labels = load(photos, label_column="age", class_names=list("abcde"), accept_left_out_files=True).labels
    assert labels.tolist() == list(range(5))


def test_metadata_that_declare_classes_are_their_labels(photos):
    features = datasets.Features(
        file_name=datasets.Value("string"), animal=datasets.ClassLabel(names=["bird", "cat", "dog"])
    )
    files = ["cat/0.png", "dog/1.png", "cat/2.png"]
    write_metadata(photos, "metadata.parquet", {"file_name": files, "animal": [1, 2, 1]}, features)
    dataset = load(photos, accept_left_out_files=True)
    assert (dataset.class_names, dataset.labels.tolist()) == (["bird", "cat", "dog"], [1, 2, 1])
    assert dataset.provenance == {
        "files": "11 found, 4 used, 7 left out",
        "used": "3 .png, 1 .parquet",
        "left out": "7 .png (not named in the metadata)",
        "classes": "0 = bird, 1 = cat, 2 = dog: as the metadata declare them; published with the model",
    }


def test_metadata_of_images_in_one_directory_have_no_labels(tmp_path):
    write_images(tmp_path / "images", GREY)
    write_metadata(tmp_path / "images", "metadata.csv", {"file_name": [f"{index}.png" for index in range(6)]})
    assert load(tmp_path).class_names is None


@pytest.mark.parametrize(
    ("name", "content"),
    [("metadata.csv", b"patient,age\n4711,80\n"), ("metadata.csv", b"file_name\n"), ("metadata.jsonl", b"\xff\xfe")],
)
def test_a_table_that_is_no_metadata_is_refused(photos, name, content):
    write_files(photos, name, content=content)
    with refused("The metadata in .* cannot be read .*: give them all one format and a column file_name") as caught:
        load(photos)
    assert "4711" not in str(caught.value)


# Data sets that `datasets` made of directories


@pytest.mark.parametrize("stray", ["0.png", "dog/deeper/0.png"])
def test_directories_that_datasets_has_dropped_are_not_ignored_silently(photos, stray, tmp_path):
    write_images((photos / stray).parent, GREY[:1])
    options = {"data_dir": str(photos), "cache_dir": str(tmp_path / "cache"), "split": "train"}
    found = datasets.load_dataset("imagefolder", **options)
    assert "label" not in found.features
    for dataset in (
        found,
        found.shuffle(),
        datasets.load_dataset("imagefolder", drop_labels=True, **options),
    ):
        with refused("The images lie in several directories, .* `unconditional` to ignore"):
            to_image_dataset(dataset)
        assert to_image_dataset(dataset, unconditional=True).class_names is None


def test_images_that_datasets_has_found_in_one_directory_have_no_classes(tmp_path):
    write_images(tmp_path / "images", GREY)
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache"))
    assert to_image_dataset(found["train"]).class_names is None


# Other sources


def test_files_of_other_sources_are_counted(tmp_path):
    (tmp_path / "tables").mkdir()
    for name in ("train-0.parquet", "train-1.parquet", "test.parquet"):
        labelled().to_parquet(tmp_path / "tables" / name)
    write_images(tmp_path / "tables" / "cat", GREY[:2])
    write_files(tmp_path / "tables" / ".cache", "old.parquet")
    with refused("would be left out, 2 .png .beside files of another format, which are read.: convert"):
        load(tmp_path / "tables")
    dataset = load(tmp_path / "tables", accept_left_out_files=True)
    assert len(dataset) == 12
    assert dataset.provenance == {
        "files": "6 found, 2 used, 4 left out",
        "used": "2 .parquet",
        "left out": "1 without suffix (hidden); 1 .parquet (not in the split 'train'); "
        "2 .png (beside files of another format, which are read)",
        "classes": "0 = cat, 1 = dog: as the column 'label' declares them; published with the model",
    }

    splits = datasets.DatasetDict(train=labelled(), test=labelled())
    splits.save_to_disk(tmp_path / "saved")
    write_files(tmp_path / "saved", "notes.txt")
    left_out = load(tmp_path / "saved").provenance["left out"]
    assert left_out == "1 .txt (documents); 1 .arrow (not in the split 'train')"

    (tmp_path / "idx").mkdir()
    write_idx(tmp_path / "idx" / "train-images-idx3-ubyte", GREY)
    write_idx(tmp_path / "idx" / "train-labels-idx1-ubyte", np.array(LABELS, dtype=np.uint8))
    write_images(tmp_path / "idx", GREY[:1])
    with refused("would be left out, 1 .png .beside files of another format"):
        load(tmp_path / "idx")
    dataset = load(tmp_path / "idx", accept_left_out_files=True)
    assert dataset.provenance["files"] == "3 found, 2 used, 1 left out"
    assert dataset.provenance["classes"].startswith("0 = 0, 1 = 1, ")
