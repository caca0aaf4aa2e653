"""Reads the IDX format, in which MNIST and Fashion-MNIST are distributed.

A file consists of a magic number (two zero bytes, a type code, the number of dimensions), each dimension as a
big-endian 32-bit integer, and the values in row-major order.
"""

import gzip
import re
import zlib
from pathlib import Path

import numpy as np

from ..errors import InputError


UINT8_TYPE_CODE = 0x08
SPLIT_PREFIXES = {"train": "train", "test": "t10k"}


def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """Read one IDX file of unsigned bytes.

    Args:
        path (`Path`): The file, compressed with gzip if its name ends in `.gz`.
        num_dimensions (`int`): The number of dimensions that the file must declare: 3 for images, 1 for labels.

    Returns:
        `np.ndarray`: The `uint8` values in the shape that the file declares.

    Raises:
        InputError: If the file is not IDX, has another type or number of dimensions, or is not as long as it declares.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a complete gzip file: download it again.") from error
    header_length = 4 + 4 * num_dimensions
    if len(content) < header_length or content[:4] != bytes([0, 0, UINT8_TYPE_CODE, num_dimensions]):
        raise InputError(
            f"{path} does not start as an IDX file of unsigned bytes with {num_dimensions} dimension(s) does: check "
            "that it is the file its name says."
        )
    # Python integers, whose product cannot overflow even if a damaged file declares huge dimensions.
    shape = np.frombuffer(content, dtype=">u4", count=num_dimensions, offset=4).tolist()
    values = np.frombuffer(content, dtype=np.uint8, offset=header_length)
    expected = int(np.prod(shape, dtype=object))
    if values.size != expected:
        raise InputError(
            f"{path} declares {expected} values but holds {values.size}, as a damaged file does: download it again."
        )
    return values.reshape(shape).copy()  # a copy, because the result of `frombuffer` is read-only


def has_idx_files(directory: Path) -> bool:
    """Whether a directory holds the images of any split in the IDX format."""
    return any(_find(directory, prefix, "images", 3) for prefix in SPLIT_PREFIXES.values())


def read_idx_dataset(directory: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the images and the labels of one split from files that are named as those of MNIST.

    The names are `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, with `t10k` instead of `train` for the
    split `"test"`. There may be a dot before `idx`, and `.gz` at the end.

    Args:
        directory (`Path`): The directory that holds the files.
        split (`str`): `"train"` or `"test"`.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The images, `uint8` of shape `(N, H, W)`, and the labels, `uint8` of shape
        `(N,)`.

    Raises:
        InputError: If the split is unknown, a file is missing or damaged, or images and labels differ in number.
    """
    if split not in SPLIT_PREFIXES:
        raise InputError(f"IDX files have no split {split!r}: pass 'train' or 'test'.")
    prefix = SPLIT_PREFIXES[split]
    image_file = _find(directory, prefix, "images", 3)
    label_file = _find(directory, prefix, "labels", 1)
    if image_file is None or label_file is None:
        raise InputError(
            f"{directory} lacks {prefix}-images-idx3-ubyte or {prefix}-labels-idx1-ubyte (or the same with .gz), which "
            f"the split {split!r} needs: add what is missing."
        )
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(images) != len(labels):
        raise InputError(
            f"{image_file} holds {len(images)} images but {label_file} holds {len(labels)} labels: use two files of "
            "one data set."
        )
    return images, labels


def is_idx(path: Path) -> bool:
    """Whether a file is in the IDX format by its name."""
    return re.search(r"idx[0-9]-ubyte(\.gz)?$", path.name) is not None


def find_idx_files(directory: Path, split: str) -> list[Path]:
    """The existing files that [`read_idx_dataset`] reads for a split."""
    prefix = SPLIT_PREFIXES[split]
    found = [_find(directory, prefix, "images", 3), _find(directory, prefix, "labels", 1)]
    return [path for path in found if path is not None]


def _find(directory: Path, prefix: str, kind: str, num_dimensions: int) -> Path | None:
    names = [
        f"{prefix}-{kind}{separator}idx{num_dimensions}-ubyte{ending}" for separator in "-." for ending in ("", ".gz")
    ]
    return next((directory / name for name in names if (directory / name).is_file()), None)
