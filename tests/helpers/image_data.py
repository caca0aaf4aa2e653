"""Images and data sets of them, on disk and in memory, for the tests."""

import contextlib
import gzip
import io
import re
import stat
import struct
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from diffusers_dp_curriculum import load_image_dataset
from diffusers_dp_curriculum.errors import InputError


CLASSES = ["cat", "dog"]
GREY = np.random.RandomState(0).randint(0, 256, (6, 8, 8), dtype=np.uint8)
COLOUR = np.random.RandomState(1).randint(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = [0, 1, 1, 0, 1, 0]


@contextlib.contextmanager
def refused(match, error=InputError):
    with pytest.raises(error, match=match) as caught:
        yield caught
    message = str(caught.value)
    assert message.endswith(".")
    assert not re.search(r"\n|[.!?] [A-Z]", message), f"more than one sentence: {message}"


def read_list(caught) -> tuple[str, int]:
    """The list of what cannot be used, which a refusal has written, and the mode of the file; the file is deleted."""
    path = Path(re.search(r"their names are in (.+), which only you can read", str(caught.value))[1])
    text, mode = path.read_text(encoding="utf-8"), stat.S_IMODE(path.stat().st_mode)
    path.unlink()
    return text, mode


def encoded(image, format="PNG", **options) -> dict:
    """An image as `datasets` stores it, which keeps the file as it is."""
    image = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def make_dataset(images=GREY, **columns) -> datasets.Dataset:
    """A data set of images; each further column is given as `name=(feature, values)`."""
    records = {"image": [image if isinstance(image, dict) else encoded(image) for image in images]}
    features = {"image": datasets.Image()}
    for name, (feature, values) in columns.items():
        features[name], records[name] = feature, values
    return datasets.Dataset.from_dict(records, features=datasets.Features(features))


def labelled(images=GREY, names=CLASSES, labels=LABELS) -> datasets.Dataset:
    return make_dataset(images, label=(datasets.ClassLabel(names=names), labels))


def write_images(directory, images):
    directory.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        PIL.Image.fromarray(image).save(directory / f"{index}.png")


def load(directory, **options):
    return load_image_dataset(train_data_dir=str(directory), **options)


def write_idx(path, array):
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def assert_is_grey(dataset, labels=LABELS, class_names=CLASSES):
    np.testing.assert_array_equal(dataset.images[:, 0].numpy(), GREY)
    assert dataset.labels.tolist() == labels
    assert dataset.class_names == class_names
