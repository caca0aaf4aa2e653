import builtins
import http.server
import threading
from dataclasses import replace

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pytest
import torch

from diffusers_dp_curriculum.data import image_decoding, storage
from diffusers_dp_curriculum.data.image_dataset import ImageDataset, load_image_dataset, to_image_dataset
from diffusers_dp_curriculum.errors import HubError
from helpers.image_data import (
    CLASSES,
    COLOUR,
    GREY,
    LABELS,
    assert_is_grey,
    encoded,
    labelled,
    load,
    make_dataset,
    read_list,
    refused,
    write_idx,
    write_images,
)


pytestmark = pytest.mark.usefixtures("quiet")


# The data set


def test_an_item_is_a_float_image_in_unit_range_with_its_label():
    dataset = to_image_dataset(labelled())
    image, label = dataset[1]
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, torch.from_numpy(GREY[1]).float().unsqueeze(0) / 255)
    assert (label, type(label)) == (1, int)
    assert (len(dataset), dataset.num_channels, dataset.resolution, dataset.num_classes) == (6, 1, 8, 2)
    assert dataset.images.dtype == torch.uint8
    assert dataset.labels.dtype == torch.int64


def test_it_batches_in_a_data_loader_and_prints_no_records():
    dataset = to_image_dataset(labelled(COLOUR))
    images, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))
    assert images.shape == (4, 3, 8, 8)
    assert labels.tolist() == LABELS[:4]
    assert "tensor" not in repr(dataset)


def test_an_image_dataset_is_returned_as_it_is():
    dataset = to_image_dataset(labelled())
    assert to_image_dataset(dataset) is dataset
    assert to_image_dataset(dataset, resolution=8) is dataset
    with refused("loaded with 8 pixels per side"):
        to_image_dataset(dataset, resolution=16)
    unconditional = to_image_dataset(dataset, unconditional=True)
    assert unconditional.images is dataset.images
    assert unconditional.class_names is None
    assert not unconditional.labels.any()


def test_what_is_not_one_split_is_refused():
    with refused("^DatasetDict is not one split"):
        to_image_dataset(datasets.DatasetDict(train=labelled()))
    with refused("^IterableDataset is not one split"):
        to_image_dataset(labelled().to_iterable_dataset())
    with refused("^ndarray is not one split .*, or an ImageDataset of tensors"):
        to_image_dataset(GREY)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": GREY[:, None]}, "The images are ndarray: make them a tensor"),
        ({"labels": LABELS}, "The labels are list: make them a tensor"),
        ({"class_names": "ab"}, "`class_names` is 'ab': give a list of texts"),
        ({"class_names": [0, 1]}, "`class_names` is .0, 1.: give a list of texts"),
        ({"class_names": ["cat", " "]}, "The name ' ' of a class is no line of text"),
    ],
)
def test_what_is_no_data_set_of_tensors_is_refused(change, words):
    with refused(words):
        to_image_dataset(replace(to_image_dataset(labelled()), **change))


@pytest.mark.parametrize("size", ["8", (8, 8), 8.5, 0])
def test_a_resolution_is_a_whole_number(size):
    with refused("`resolution` is .*: give a whole number above 0"):
        to_image_dataset(labelled(), resolution=size)


def test_an_empty_path_is_not_the_current_directory(photos, monkeypatch):
    monkeypatch.chdir(photos)
    with refused("`train_data_dir` is empty"):
        load("")
    monkeypatch.setenv("HOME", str(photos.parent))
    assert len(load("~/photos")) == 10


def test_an_empty_data_set_is_refused(tmp_path):
    with refused("is empty"):
        to_image_dataset(labelled([], labels=[]))
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((0, 8, 8), dtype=np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(0, dtype=np.uint8))
    with refused("is empty"):
        load_image_dataset(train_data_dir=str(tmp_path))


# Pixels


def test_colour_images_survive_exactly():
    dataset = to_image_dataset(labelled(COLOUR))
    np.testing.assert_array_equal(dataset.images.numpy(), COLOUR.transpose(0, 3, 1, 2))
    same = to_image_dataset(labelled(COLOUR), resolution=8)
    assert torch.equal(same.images, dataset.images)


def test_a_data_set_with_format_or_selection_gives_the_same():
    dataset = labelled().select([2, 0])
    for variant in (dataset, dataset.with_format("torch"), dataset.with_format("numpy", columns=["label"])):
        decoded = to_image_dataset(variant)
        np.testing.assert_array_equal(decoded.images[:, 0].numpy(), GREY[[2, 0]])
        assert decoded.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("RGB", 3), ("P", 3), ("RGBA", 3), ("CMYK", 3)]
)
def test_modes_become_grey_or_rgb(mode, channels):
    image = PIL.Image.fromarray(COLOUR[0]).convert(mode)
    dataset = to_image_dataset(make_dataset([encoded(image, format="TIFF")] * 2))
    expected = np.atleast_3d(image.convert("L" if channels == 1 else "RGB")).transpose(2, 0, 1)
    assert dataset.num_channels == channels
    np.testing.assert_array_equal(dataset.images[1].numpy(), expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_modes_of_no_known_range_are_refused(dtype):
    images = [encoded(GREY[0].astype(dtype), format="TIFF")]
    with refused(r"1 of 1 images cannot be used \(1 with more than 8 bits a pixel\), .*: pass `pixel_range`"):
        to_image_dataset(make_dataset(images))


def test_grey_and_colour_together_are_refused():
    with refused(r"\(1 in colour where the first is grey\), the first of which is record 2: pass `channels` 1 or 3"):
        to_image_dataset(make_dataset([GREY[0], GREY[1], COLOUR[0]]))


def test_images_of_several_shapes_need_a_resolution():
    with refused("another size than the first or no squares.* is record 1: pass `resolution`"):
        to_image_dataset(make_dataset([GREY[0], GREY[1][:, :6]]))
    with refused("another size than the first or no squares.* is record 0: pass `resolution`"):
        to_image_dataset(make_dataset([GREY[0][:, :6]] * 2))
    assert to_image_dataset(make_dataset([GREY[0], GREY[1][:, :6]]), resolution=4).images.shape == (2, 1, 4, 4)


@pytest.mark.parametrize("wide", [True, False])
def test_the_shorter_side_is_fitted_and_the_centre_kept(wide):
    image = np.zeros((8, 16), dtype=np.uint8)
    image[:, 4:12] = GREY[0]  # the central square; what lies outside must not matter
    image = image if wide else image.T
    at_size = to_image_dataset(make_dataset([image]), resolution=8).images[0, 0].numpy()
    np.testing.assert_array_equal(at_size, GREY[0] if wide else GREY[0].T)


def test_resizing_is_antialiased():
    checkerboard = np.indices((16, 16)).sum(axis=0).astype(np.uint8) % 2 * 255
    resized = to_image_dataset(make_dataset([checkerboard]), resolution=4).images
    assert resized.shape == (1, 1, 4, 4)
    assert (resized.float() - 127.5).abs().max() < 16  # nearest or aliased sampling would leave 0 or 255


def test_exif_orientation_is_applied():
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6  # held so that it must be turned by 90 degrees clockwise
    dataset = to_image_dataset(make_dataset([encoded(GREY[0], exif=exif)]))
    np.testing.assert_array_equal(dataset.images[0, 0].numpy(), np.rot90(GREY[0], -1))


@pytest.mark.parametrize(
    ("damaged", "what"),
    [
        ({"bytes": b"", "path": None}, "empty"),
        ({"bytes": b"secret content", "path": "secret.png"}, "in no format that Pillow reads"),
        ({"bytes": encoded(GREY[0])["bytes"][:60], "path": None}, "damaged"),
        ({"bytes": None, "path": "/nowhere/secret.png"}, "missing"),
        ({"bytes": b"version https://git-lfs.github.com/spec/v1\noid", "path": "secret.png"}, "pointers of Git LFS"),
        ({"bytes": b"/annex/objects/SHA256E-s1--secret.png", "path": "secret.png"}, "pointers of git-annex"),
        (None, "empty"),
    ],
)
def test_an_image_that_cannot_be_used_is_named_in_a_list_for_the_owner_alone(damaged, what):
    images = [encoded(GREY[0]), encoded(GREY[1]), damaged]
    dataset = datasets.Dataset.from_dict({"image": images}, features=datasets.Features(image=datasets.Image()))
    with refused(rf"1 of 3 images cannot be used \(1 {what}\), the first of which is record 2: ") as caught:
        to_image_dataset(dataset)
    assert "secret" not in str(caught.value)
    text, mode = read_list(caught)
    name = (damaged or {})["path"] if damaged and damaged["path"] else "stored in the data set"
    assert text.startswith(f"record 2: {name}: {what}")
    assert mode == 0o600


def test_a_large_data_set_is_backed_by_a_temporary_file_that_has_no_name(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "MAX_BYTES_IN_MEMORY", GREY.size - 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mapped = []
    monkeypatch.setattr(image_decoding, "allocate", lambda *what: mapped.append(storage.allocate(*what)) or mapped[0])
    dataset = to_image_dataset(labelled())
    assert isinstance(mapped[0], np.memmap)
    assert dataset.images.data_ptr() == mapped.pop().ctypes.data  # the tensor is the file, not a copy
    assert_is_grey(dataset)
    assert list(tmp_path.iterdir()) == []


def test_a_small_data_set_is_in_memory():
    assert not isinstance(storage.allocate((6, 1, 8, 8), np.uint8, "The images"), np.memmap)


# Columns and labels


def test_the_image_column_is_found_or_asked_for():
    two = make_dataset(COLOUR, mask=(datasets.Image(), [encoded(image) for image in GREY]))
    with refused(r"several image columns \(image, mask\): pass one of them as `image_column`"):
        to_image_dataset(two)
    assert to_image_dataset(two, image_column="mask").num_channels == 1
    with refused("no image column among age: pass"):
        to_image_dataset(two.add_column("age", [1] * 6).remove_columns(["image", "mask"]))
    with refused("no column 'picture': pass `image_column` with one of image, mask"):
        to_image_dataset(two, image_column="picture")
    with refused("'label' does not hold images"):
        to_image_dataset(labelled(), image_column="label")


def test_the_label_column_is_found_or_asked_for():
    label = datasets.ClassLabel(names=CLASSES)
    two = make_dataset(label=(label, LABELS), sex=(label, LABELS[::-1]))
    with refused(r"several label columns \(label, sex\): pass one of them as `label_column`"):
        to_image_dataset(two)
    assert to_image_dataset(two, label_column="sex").labels.tolist() == LABELS[::-1]
    with refused("no column 'class': pass `label_column` with one of image, label, sex"):
        to_image_dataset(two, label_column="class")
    with refused("'image' holds neither class labels nor integers nor booleans"):
        to_image_dataset(two, label_column="image", class_names=CLASSES)


def test_without_labels_it_is_unconditional():
    for dataset in (to_image_dataset(make_dataset()), to_image_dataset(labelled(), unconditional=True)):
        assert_is_grey(dataset, labels=[0] * 6, class_names=None)
        assert dataset.num_classes is None
        assert dataset[1][1] == 0
    with refused("Class names are given but no column is declared to hold labels"):
        to_image_dataset(make_dataset(), class_names=CLASSES)


def test_labels_that_nobody_looks_at_may_be_anything():
    assert len(to_image_dataset(labelled(labels=[None, -1, 0, 0, 0, 0]), unconditional=True)) == 6


@pytest.mark.parametrize(
    ("dtype", "values"), [("string", [CLASSES[label] for label in LABELS]), ("int64", LABELS), ("uint8", LABELS)]
)
def test_undeclared_labels_need_class_names(dtype, values):
    dataset = make_dataset(animal=(datasets.Value(dtype), values))
    assert_is_grey(to_image_dataset(dataset, label_column="animal", class_names=CLASSES))
    with refused("'animal' does not declare its classes, .* pass `class_names`"):
        to_image_dataset(dataset, label_column="animal")
    with refused("The label of record 1 is missing or none of the declared classes"):
        to_image_dataset(dataset, label_column="animal", class_names=["cat"])


@pytest.mark.parametrize(
    ("dtype", "values", "class_names", "expected"),
    [
        ("int64", [1, 4, 2], "1 2 3 4 5", [0, 3, 1]),
        ("int64", [-1, 1, 1], "1 -1", [1, 0, 0]),
        ("int8", [7, 10, 7], "07 10", [0, 1, 0]),
        ("int64", [0, 2, 1], "cat dog bird", [0, 2, 1]),
        ("int64", [0, 2, 1], "0 1 other", [0, 2, 1]),
        ("bool", [True, False, True], "True False", [0, 1, 0]),
        ("bool", [True, False, True], "false true", [1, 0, 1]),
        ("bool", [True, False, True], "yes no", [0, 1, 0]),
        ("int64", [1, 0, 1], "TRUE FALSE", [0, 1, 0]),
        ("bool", [True, False, True], "benign malignant", [1, 0, 1]),
        ("int64", [5, 24, 0], "a b c d e f g h i j k l m n o p q r s t u v w x y z", [5, 24, 0]),
        ("string", ["2", "1", "2"], "1 2", [1, 0, 1]),
        ("int64", [1, 0, 1], "1.0 0.0", [0, 1, 0]),
    ],
)
def test_labels_that_are_numbers_match_names_before_indices(dtype, values, class_names, expected):
    dataset = make_dataset(GREY[:3], kind=(datasets.Value(dtype), values))
    loaded = to_image_dataset(dataset, label_column="kind", class_names=class_names.split())
    assert loaded.labels.tolist() == expected


@pytest.mark.parametrize("class_names", ["2 1 other", "1 01", "other 2 1", "yes true"])
def test_labels_that_may_be_names_or_indices_are_refused(class_names):
    dataset = make_dataset(GREY[:3], kind=(datasets.Value("int64"), [1, 1, 1]))
    with refused("The labels are numbers, which may be names or indices of the classes"):
        to_image_dataset(dataset, label_column="kind", class_names=class_names.split())


def test_labels_outside_of_the_names_are_not_read_as_indices(tmp_path):
    dataset = make_dataset(GREY[:3], kind=(datasets.Value("int64"), [0, 1, 2]))
    with refused("The label of record 0 is missing or none of the declared classes"):
        to_image_dataset(dataset, label_column="kind", class_names=["1", "2", "3"])
    write_idx(tmp_path / "train-images-idx3-ubyte", GREY[:3])
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([1, 3, 2], dtype=np.uint8))
    assert load_image_dataset(train_data_dir=str(tmp_path), class_names=list("123")).labels.tolist() == [0, 2, 1]


def test_one_empty_cell_among_integers_is_named_and_not_called_floating_point():
    dataset = make_dataset(animal=(datasets.Value("float64"), [0, 1, None, 0, 1, float("nan")]))
    with refused("The label of record 2 is missing .*records with such labels: 2") as caught:
        to_image_dataset(dataset, label_column="animal", class_names=CLASSES)
    assert [line.split(":")[0] for line in read_list(caught)[0].splitlines()] == ["record 2", "record 5"]


def test_the_owner_learns_which_files_have_wrong_labels(tmp_path):
    write_images(tmp_path, GREY[:3])
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,cat\n1.png,\n2.png,bird\n")
    with refused("The label of record 1 is missing .*records with such labels: 2") as caught:
        load_image_dataset(train_data_dir=str(tmp_path), label_column="label", class_names=CLASSES)
    assert "png" not in str(caught.value)
    text = read_list(caught)[0]
    assert f"record 1: {tmp_path / '1.png'}: label None" in text
    assert f"record 2: {tmp_path / '2.png'}: label 'bird'" in text


def test_floating_point_labels_are_refused():
    dataset = make_dataset(weight=(datasets.Value("float32"), LABELS))
    with refused("'weight' holds neither class labels nor integers nor booleans"):
        to_image_dataset(dataset, label_column="weight", class_names=CLASSES)


def test_class_names_of_the_user_order_and_extend_the_declared_ones():
    dataset = to_image_dataset(labelled(), class_names=["dog", "bird", "cat"])
    assert dataset.class_names == ["dog", "bird", "cat"]
    assert dataset.labels.tolist() == [2, 0, 0, 2, 0, 2]
    with refused("The label of record 1 is missing or none of the declared classes"):
        to_image_dataset(labelled(), class_names=["cat", "bird"])


def test_a_class_without_records_stays_a_class():
    assert to_image_dataset(labelled(names=["cat", "dog", "bird"])).num_classes == 3


@pytest.mark.parametrize("missing", [None, -1])
def test_missing_labels_are_refused(missing):
    with refused("The label of record 4 is missing"):
        to_image_dataset(labelled(labels=[0, 1, 1, 0, missing, 0]))


# Digits


def test_the_digits_have_two_disjoint_splits_and_16_exact_levels():
    train, test = (load_image_dataset(dataset_name="digits", split=split) for split in ("train", "test"))
    assert train.images.shape == (1500, 1, 8, 8)
    assert test.images.shape == (297, 1, 8, 8)
    assert train.class_names == [str(digit) for digit in range(10)]
    levels = {round(value * 255 / 16) for value in range(17)}
    assert set(train.images.unique().tolist()) == levels
    records = {image.numpy().tobytes() for image in train.images} | {image.numpy().tobytes() for image in test.images}
    assert len(records) == 1797  # scikit-learn's digits are all distinct, so none is in both or lost
    again = load_image_dataset(dataset_name="digits")
    assert torch.equal(again.images, train.images)
    assert torch.equal(again.labels, train.labels)


def test_the_digits_keep_their_labels():
    from sklearn.datasets import load_digits

    original = load_digits()
    label_of = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): label
        for image, label in zip(original.images, original.target, strict=True)
    }
    dataset = load_image_dataset(dataset_name="digits", split="test")
    assert [label_of[image.numpy().tobytes()] for image in dataset.images] == dataset.labels.tolist()


def test_the_digits_take_the_common_options():
    dataset = load_image_dataset(dataset_name="digits", resolution=16, unconditional=True)
    assert dataset.images.shape == (1500, 1, 16, 16)
    assert dataset.class_names is None
    with refused("pass 'train' or 'test'"):
        load_image_dataset(dataset_name="digits", split="validation")
    with refused("none of the declared classes"):
        load_image_dataset(dataset_name="digits", class_names=["zero", "one"])


# Directories


def test_exactly_one_source_is_given(tmp_path):
    with refused("`dataset_name` and `train_data_dir` are both"):
        load_image_dataset()
    with refused("`dataset_name` and `train_data_dir` are both"):
        load_image_dataset(dataset_name="digits", train_data_dir=str(tmp_path))


def test_a_saved_data_set(tmp_path):
    labelled().save_to_disk(tmp_path / "one")
    assert_is_grey(load_image_dataset(train_data_dir=str(tmp_path / "one")))
    with refused("has no split 'test'"):
        load_image_dataset(train_data_dir=str(tmp_path / "one"), split="test")

    splits = datasets.DatasetDict(train=labelled(), test=labelled(GREY[:2], labels=[0, 1]))
    splits.save_to_disk(tmp_path / "two")
    assert_is_grey(load_image_dataset(train_data_dir=str(tmp_path / "two")))
    assert len(load_image_dataset(train_data_dir=str(tmp_path / "two"), split="test")) == 2
    with refused("has no split 'validation'"):
        load_image_dataset(train_data_dir=str(tmp_path / "two"), split="validation")


def test_parquet_files(tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    labelled().to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    labelled(GREY[:2], labels=[0, 1]).to_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    assert_is_grey(load_image_dataset(train_data_dir=str(tmp_path / "hub")))
    assert len(load_image_dataset(train_data_dir=str(tmp_path / "hub"), split="test")) == 2

    (tmp_path / "plain").mkdir()
    labelled(GREY[:3], labels=LABELS[:3]).to_parquet(tmp_path / "plain" / "part-0.parquet")
    labelled(GREY[3:], labels=LABELS[3:]).to_parquet(tmp_path / "plain" / "part-1.parquet")
    assert_is_grey(load_image_dataset(train_data_dir=str(tmp_path / "plain")))
    with refused("has no split 'test'"):
        load_image_dataset(train_data_dir=str(tmp_path / "plain"), split="test")


def test_parquet_files_of_another_split_are_not_trained_on(tmp_path):
    labelled(GREY[:4], labels=LABELS[:4]).to_parquet(tmp_path / "latest.parquet")
    labelled(GREY[4:], labels=LABELS[4:]).to_parquet(tmp_path / "test.parquet")
    assert len(load_image_dataset(train_data_dir=str(tmp_path))) == 4
    assert len(load_image_dataset(train_data_dir=str(tmp_path), split="test")) == 2


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files(tmp_path, ending):
    labels = np.array([3, 1, 4, 1, 5, 9], dtype=np.uint8)
    write_idx(tmp_path / f"train-images-idx3-ubyte{ending}", GREY)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{ending}", labels)
    write_idx(tmp_path / f"t10k-images-idx3-ubyte{ending}", GREY[:2])
    write_idx(tmp_path / f"t10k-labels-idx1-ubyte{ending}", labels[:2])
    directory = str(tmp_path)
    digits = [str(digit) for digit in range(10)]
    assert_is_grey(load_image_dataset(train_data_dir=directory), labels=labels.tolist(), class_names=digits)
    assert len(load_image_dataset(train_data_dir=directory, split="test")) == 2

    named = load_image_dataset(train_data_dir=directory, class_names=list("abcdefghij"))
    assert named.class_names == list("abcdefghij")
    with refused("The label of record 5 is missing or none of the declared classes"):
        load_image_dataset(train_data_dir=directory, class_names=list("abcdefghi"))
    assert_is_grey(load_image_dataset(train_data_dir=directory, unconditional=True), [0] * 6, None)

    resized = load_image_dataset(train_data_dir=directory, resolution=4).images
    assert torch.equal(resized, to_image_dataset(make_dataset(GREY), resolution=4).images)


def test_idx_images_that_are_no_squares(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", GREY[:, :, 1:7])
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(6, dtype=np.uint8))
    with refused("another size than the first or no squares"):
        load_image_dataset(train_data_dir=str(tmp_path))
    cropped = load_image_dataset(train_data_dir=str(tmp_path), resolution=6)
    np.testing.assert_array_equal(cropped.images[:, 0].numpy(), GREY[:, 1:7, 1:7])


def test_all_files_that_cannot_be_used_are_named_in_one_list(tmp_path, monkeypatch):
    write_images(tmp_path, GREY)
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "4.png").write_bytes((tmp_path / "3.png").read_bytes()[:50])
    (tmp_path / "5.png").write_bytes(b"")
    reading = builtins.open

    def not_allowed(path, *args, **options):
        if str(path).endswith("3.png"):
            raise PermissionError
        return reading(path, *args, **options)

    monkeypatch.setattr("builtins.open", not_allowed)
    counts = r"\(2 empty, 1 without permission to read them, 1 damaged\)"
    with refused(f"4 of 6 images cannot be used {counts}, the first of which is record 1: ") as caught:
        load_image_dataset(train_data_dir=str(tmp_path))
    lines = read_list(caught)[0].splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [f"record {index}", str(tmp_path / f"{index}.png")] for index in (1, 3, 4, 5)
    ]


def test_no_copy_of_the_records_stays_behind(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    labelled().to_parquet(tmp_path / "data" / "train.parquet")
    for name in ("cache", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    load_image_dataset(train_data_dir=str(tmp_path / "data"))
    assert list((tmp_path / "cache").iterdir()) == []
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_directory_of_anything_else_is_refused(tmp_path):
    with refused("is not a directory"):
        load_image_dataset(train_data_dir=str(tmp_path / "missing"))
    with refused("holds no images"):
        load_image_dataset(train_data_dir=str(tmp_path))
    (tmp_path / "notes.txt").write_text("no images")
    with refused("holds no images"):
        load_image_dataset(train_data_dir=str(tmp_path))
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with refused(r"\(1 damaged or cut off\)"):
        load_image_dataset(train_data_dir=str(tmp_path))
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "state.json").write_text("{}")
    with refused("cannot be"):
        load_image_dataset(train_data_dir=str(tmp_path))


# The Hub


class HubWithoutRepositories(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubWithoutRepositories)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_a_name_that_the_hub_does_not_know_is_refused(hub):
    with refused("'nobody/nothing' cannot be loaded from the Hub .RepositoryNotFoundError", HubError):
        load_image_dataset(dataset_name="nobody/nothing")


def test_a_name_that_cannot_be_one_is_refused():
    with refused("'not/a/name' cannot be loaded from the Hub .HFValidationError", HubError):
        load_image_dataset(dataset_name="not/a/name")


@pytest.mark.timeout(10)  # `load_dataset` on its own retries for 23 seconds
def test_a_hub_out_of_reach_is_refused_at_once(hub):
    hub.shutdown()
    hub.server_close()
    with refused("'somebody/something' cannot be loaded from the Hub .ConnectError", HubError):
        load_image_dataset(dataset_name="somebody/something")


def test_offline_mode_looks_in_the_cache_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with refused("'somebody/something' cannot be loaded from the Hub .ConnectionError", HubError):
        load_image_dataset(dataset_name="somebody/something")


def test_the_type_can_be_built_by_hand():
    dataset = ImageDataset(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), CLASSES)
    assert (dataset.num_channels, dataset.resolution, dataset.num_classes) == (3, 4, 2)


def test_columns_cannot_be_chosen_where_there_are_none():
    with refused("no columns to choose from"):
        load_image_dataset(dataset_name="digits", label_column="digit")


def test_a_column_that_may_hold_labels_is_not_dropped_silently():
    images = [PIL.Image.new("L", (8, 8), value) for value in (0, 255)]
    dataset = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}).cast_column("image", datasets.Image())
    with refused("does not declare its classes"):
        to_image_dataset(dataset)
    assert to_image_dataset(dataset, unconditional=True).class_names is None
    assert to_image_dataset(dataset, label_column="label", class_names=["no", "yes"]).labels.tolist() == [0, 1]
