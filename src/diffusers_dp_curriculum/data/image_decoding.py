"""Decodes images into one tensor of bytes."""

import itertools
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from tqdm.auto import tqdm

from ..errors import InputError
from ..files import check_room, full_disk_errors
from .silence import silence


# Larger data sets are decoded into a memory-mapped temporary file.
MAX_BYTES_IN_MEMORY = 4 * 2**30

# Modes that are converted to grey and to RGB. The range of 16-bit and floating-point modes would have to be read from
# the records.
GREY_MODES = {"1", "L", "LA"}
COLOUR_MODES = {"RGB", "P", "RGBA", "CMYK"}
KINDS = {"L": "grey", "RGB": "in colour"}


def read_images(dataset: datasets.Dataset, image_column: str) -> Iterator[PIL.Image.Image]:
    """Decode the images one by one, and rotate them upright according to their EXIF data."""
    feature = datasets.Image(mode=dataset.features[image_column].mode)
    encoded = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    for index, record in enumerate(encoded):
        try:
            image = feature.decode_example(record[image_column])
            image.load()  # an `AttributeError` for a missing image, which decodes to `None`
        except Exception:  # of any type for a damaged file; the original would show the file's name
            raise InputError(
                f"The image of record {index} is empty or cannot be decoded: repair or remove that record."
            ) from None
        yield image


def to_tensor(images: Iterable[PIL.Image.Image], num_images: int, resolution: int | None) -> torch.Tensor:
    """Convert images, either all grey or all RGB, to `uint8` of shape `(N, C, resolution, resolution)`."""
    converted = _silently(_to_grey_or_rgb(image, index) for index, image in enumerate(images))
    progress = iter(tqdm(converted, total=num_images, desc="Decoding images", leave=False))
    first = next(progress)
    side = resolution or first.width
    pixels = _allocate((num_images, len(first.getbands()), side, side))
    for index, image in enumerate(itertools.chain([first], progress)):
        if image.mode != first.mode:
            raise InputError(
                f"Record {index} is {KINDS[image.mode]} but record 0 is {KINDS[first.mode]}: convert all images to one "
                "of the two."
            )
        if image.size != (side, side):
            if resolution is None:
                raise InputError(
                    f"Record {index} is {image.width}x{image.height} pixels, and not all images are squares of one "
                    "size: pass `resolution` to resize and crop them."
                )
            image = PIL.ImageOps.fit(image, (side, side))
        pixels[index] = np.atleast_3d(image).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def _silently(images: Iterator[PIL.Image.Image]) -> Iterator[PIL.Image.Image]:
    """Yield the same images, and suppress all output while each image is decoded."""
    while True:
        with silence():
            image = next(images, None)
        if image is None:
            return
        yield image


def _to_grey_or_rgb(image: PIL.Image.Image, index: int) -> PIL.Image.Image:
    if image.mode in GREY_MODES:
        return image.convert("L")
    if image.mode in COLOUR_MODES:
        return image.convert("RGB")
    raise InputError(
        f"The image of record {index} has the mode {image.mode!r}, which is neither 8-bit grey nor RGB: convert the "
        "images to one of these."
    )


def _allocate(shape: tuple[int, ...]) -> np.ndarray:
    if math.prod(shape) <= MAX_BYTES_IN_MEMORY:
        return np.empty(shape, dtype=np.uint8)
    directory, remedy = Path(tempfile.gettempdir()), "set TMPDIR to a directory on a larger disk"
    check_room(directory, math.prod(shape), "The decoded images", remedy)
    # The file has no name, so the system deletes it when the last reference to the memory map is gone.
    with tempfile.TemporaryFile() as file, full_disk_errors(directory, "start again"):
        # The room is reserved: a process that writes to a memory map on a full disk is killed.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
