import gzip
import struct

import numpy as np
import pytest

from diffusers_dp_curriculum.data.idx import has_idx_files, read_idx, read_idx_dataset
from helpers.image_data import refused


IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
LABELS = np.array([7, 0, 9], dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 0x08, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize(("array", "num_dimensions"), [(IMAGES, 3), (LABELS, 1)])
def test_values_and_shape_survive_plain_and_compressed(tmp_path, array, num_dimensions):
    (tmp_path / "plain").write_bytes(idx_bytes(array))
    (tmp_path / "compressed.gz").write_bytes(gzip.compress(idx_bytes(array)))
    for name in ("plain", "compressed.gz"):
        read = read_idx(tmp_path / name, num_dimensions)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("spelling", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte", "{}-{}-idx{}-ubyte.gz"])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_a_split_is_found_by_the_names_of_mnist(tmp_path, spelling, split, prefix):
    assert not has_idx_files(tmp_path)
    for kind, array in (("images", IMAGES), ("labels", LABELS)):
        content = idx_bytes(array)
        path = tmp_path / spelling.format(prefix, kind, array.ndim)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    assert has_idx_files(tmp_path)
    images, labels = read_idx_dataset(tmp_path, split)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n and more bytes than a header has",
        idx_bytes(IMAGES)[:15],  # cut inside the header
        idx_bytes(LABELS),  # labels under the name of images
        b"\x00\x00\x0d\x03" + idx_bytes(IMAGES)[4:],  # floating point
    ],
)
def test_a_file_that_is_not_idx_images_is_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with refused("does not start as an IDX file"):
        read_idx(tmp_path / "file", 3)


@pytest.mark.parametrize("content", [idx_bytes(IMAGES)[:-1], idx_bytes(IMAGES) + b"\x00"])
def test_a_file_of_another_length_than_it_declares_is_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with refused(f"declares 60 values but holds {len(content) - 16}"):
        read_idx(tmp_path / "file", 3)


def test_declared_sizes_that_overflow_64_bits_are_refused(tmp_path):
    (tmp_path / "file").write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 4))
    with refused(f"declares {2**64} values but holds 0"):
        read_idx(tmp_path / "file", 3)


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(idx_bytes(IMAGES))[:-12], b"\x1f\x8b\x08" + b"\xff" * 40],
    ids=["no gzip", "cut short", "noise"],
)
def test_a_damaged_gzip_file_is_refused(tmp_path, content):
    (tmp_path / "file.gz").write_bytes(content)
    with refused("not a complete gzip file"):
        read_idx(tmp_path / "file.gz", 3)


def test_a_missing_file_another_split_and_unequal_numbers_are_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    with refused("lacks train-images-idx3-ubyte or train-labels-idx1-ubyte"):
        read_idx_dataset(tmp_path, "train")
    with refused("pass 'train' or 'test'"):
        read_idx_dataset(tmp_path, "validation")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[:2]))
    with refused("holds 3 images but .* holds 2 labels"):
        read_idx_dataset(tmp_path, "train")
