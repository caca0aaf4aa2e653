"""Decodes the images of a data set into one tensor of bytes."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from .pixel_format import PixelFormat
from .silence import silence
from .storage import allocate
from .unusable import STORED, Unusable, check_content, read_file, refusal


# Pillow lets other Python code run while it reads and decodes, so threads use several cores, and copy no records.
MAX_THREADS = 8
CHUNK = 256

# Pillow refuses images with more than twice this number of pixels. Its own number protects servers from strangers, and
# is too small for microscopes.
MAX_IMAGE_PIXELS = 2**29


def decode_column(dataset: datasets.Dataset, image_column: str, pixel_format: PixelFormat) -> torch.Tensor:
    """Decode the images of a data set, and rotate them upright according to their EXIF data.

    Args:
        dataset (`datasets.Dataset`): The records.
        image_column (`str`): The column of images.
        pixel_format (`PixelFormat`): How images become pixels.

    Returns:
        `torch.Tensor`: `uint8` of shape `(N, C, H, W)`.

    Raises:
        InputError: If an image cannot be used, or the images are not of one size or not all grey or all in colour.
    """
    encoded = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    pixel_format = pixel_format.with_mode(dataset.features[image_column].mode)
    return to_tensor(encoded[image_column], _open, pixel_format)


def to_tensor(
    records: Sequence[Any] | np.ndarray, open_image: Callable[[Any], PIL.Image.Image], pixel_format: PixelFormat
) -> torch.Tensor:
    """Convert the images of records to `uint8` of shape `(N, C, H, W)`.

    Args:
        records (`Sequence` or `np.ndarray`):
            What `open_image` takes; if they are dictionaries, `"path"` is the name of a file.
        open_image (`Callable`): Opens the image of a record.
        pixel_format (`PixelFormat`): How images become pixels.

    Returns:
        `torch.Tensor`: `uint8` of shape `(N, C, H, W)`.

    Raises:
        InputError: If an image cannot be used, or the images are not of one size or not all grey or all in colour.
    """

    def decode(record: Any) -> np.ndarray | Unusable:
        try:
            return pixel_format.pixels_of(open_image(record))
        except Unusable as problem:
            return problem
        except MemoryError:
            raise
        except Exception as error:  # of any type for a damaged file
            return Unusable("damaged", "repair or remove the damaged ones", f"({type(error).__name__}: {error})")

    pixels: np.ndarray | None = None
    unusable: dict[int, Unusable] = {}
    names: dict[int, str] = {}
    with _workers() as pool, tqdm(total=len(records), desc="Decoding images", leave=False) as progress:
        # If a whole chunk cannot be used, a setting is wrong, and the rest would take long to tell the same.
        while progress.n < len(records) and len(unusable) < CHUNK:
            chunk = records[progress.n : progress.n + CHUNK]
            with silence(), _no_limit_for_servers():
                decoded = list(pool.map(decode, chunk))
            for index, (record, image) in enumerate(zip(chunk, decoded, strict=True), start=int(progress.n)):
                problem = image if isinstance(image, Unusable) else _misfit(image, pixels)
                if problem is not None:
                    unusable[index], names[index] = problem, f"record {index}: {_name(record)}"
                    continue
                assert isinstance(image, np.ndarray)
                if pixels is None:
                    pixels = allocate((len(records), *image.shape), np.uint8, "The decoded images")
                pixels[index] = image
            progress.update(len(decoded))
        checked = int(progress.n)
    if pixels is None or unusable:
        by_name = {names[index]: problem for index, problem in unusable.items()}
        raise refusal("images", checked, by_name, f"record {min(unusable)}")
    return torch.from_numpy(pixels)


def is_grey(pixels: torch.Tensor) -> bool:
    """Whether the channels of all RGB images are equal.

    Args:
        pixels (`torch.Tensor`): `uint8` of shape `(N, 3, H, W)`.
    """
    return all(bool((image == image[:1]).all()) for image in pixels)


def _open(record: dict[str, Any] | None) -> PIL.Image.Image:
    """Open the image of a record as `datasets` stores it: the content of a file, or its path."""
    record = record or {"bytes": None, "path": None}
    if record["bytes"] is None and record["path"] is None:
        raise Unusable("empty", "restore or remove the empty ones")
    if record["bytes"] is None and "://" in record["path"]:  # the address of a file in an archive, or on the Hub
        image: PIL.Image.Image = datasets.Image().decode_example(record)
        return image
    content = read_file(record["path"]) if record["bytes"] is None else record["bytes"]
    check_content(content)
    try:
        return PIL.Image.open(io.BytesIO(content))
    except PIL.UnidentifiedImageError:
        raise Unusable("in no format that Pillow reads", "convert these to PNG or JPEG, or remove them") from None
    except PIL.Image.DecompressionBombError:
        raise Unusable(f"of more than {2 * MAX_IMAGE_PIXELS:,} pixels", "make the largest ones smaller") from None


def _misfit(image: np.ndarray, pixels: np.ndarray | None) -> Unusable | None:
    """Why an image does not fit those before it; None if it does."""
    channels, height, width = image.shape if pixels is None else pixels.shape[1:]
    if image.shape[0] != channels:
        kinds = {1: "grey", 3: "in colour"}
        return Unusable(
            f"{kinds[image.shape[0]]} where the first is {kinds[channels]}",
            "pass `channels` 1 or 3 to convert all images, or remove those that do not belong to the others",
        )
    if height != width or image.shape[1:] != (height, width):
        return Unusable(
            "of another size than the first or no squares",
            "pass `resolution` to resize and crop them",
            f"({image.shape[2]}x{image.shape[1]} pixels)",
        )
    return None


def _name(record: Any) -> str:
    return (isinstance(record, dict) and record["path"]) or STORED


def _workers() -> ThreadPoolExecutor:
    PIL.Image.init()  # registers the formats, which threads must not do at the same time
    return ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))


@contextlib.contextmanager
def _no_limit_for_servers() -> Iterator[None]:
    limit = PIL.Image.MAX_IMAGE_PIXELS
    PIL.Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS
    try:
        yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit
