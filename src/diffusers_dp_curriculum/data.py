"""Loading and checking image data sets.

Every source ends as an [`ImageDataset`]: the records decoded once, checked, and held as bytes. Nothing here is a
mechanism: what is loaded is as sensitive as its source. The messages of errors name a record by its index, never by
its file or its content.
"""

import contextlib
import glob
import itertools
import math
import tempfile
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from sklearn.datasets import load_digits
from tqdm.auto import tqdm

from .errors import InputError
from .idx import has_idx_files, read_idx_dataset


# Larger data sets are decoded into a memory-mapped temporary file.
MAX_BYTES_IN_MEMORY = 4 * 2**30

HUB_TIMEOUT_SECONDS = 10

# What a mode is converted to; 16-bit and floating-point modes have no range that is known to be public.
GREY_MODES = {"1", "L", "LA"}
COLOUR_MODES = {"RGB", "P", "RGBA", "CMYK"}
KINDS = {"L": "grey", "RGB": "in colour"}

LABEL_LIKE = {"label", "labels", "class", "classes", "target"}

SPLIT_DIRECTORIES = {"train", "test", "validation", "valid", "val"}

NUM_DIGITS_TRAIN = 1500


@dataclass(eq=False, repr=False)  # a printed data set must not print its records
class ImageDataset(torch.utils.data.Dataset):
    """Labelled images decoded once into `uint8` memory.

    An item is an image, `float32` in [0, 1] of shape `(C, H, W)`, and its label, an `int`.

    Args:
        images (`torch.Tensor`):
            `uint8` of shape `(N, C, H, W)` with `C` 1 (grey) or 3 (RGB) and `H == W`. It may be backed by a
            memory-mapped temporary file, which is gone when the tensor is.
        labels (`torch.Tensor`):
            `int64` of shape `(N,)`; all zero for an unconditional data set.
        class_names (`list[str]`, *optional*):
            The name of each class. `None` for an unconditional data set.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index].float() / 255, int(self.labels[index])

    @property
    def num_channels(self) -> int:
        """`int`: 1 for grey images, 3 for RGB."""
        return self.images.shape[1]

    @property
    def resolution(self) -> int:
        """`int`: Height and width of the images in pixels."""
        return self.images.shape[-1]

    @property
    def num_classes(self) -> int | None:
        """`int` or `None`: The number of classes; `None` for an unconditional data set."""
        return None if self.class_names is None else len(self.class_names)


def load_image_dataset(
    *,
    dataset_name: str | None = None,
    train_data_dir: str | None = None,
    resolution: int | None = None,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: list[str] | None = None,
    unconditional: bool = False,
) -> ImageDataset:
    """Loads one split of an image data set from the Hub, from a directory, or from scikit-learn.

    Args:
        dataset_name (`str`, *optional*):
            A data set on the Hub, or `"digits"`: scikit-learn's 1,797 handwritten digits of 8x8 pixels, of which a
            fixed permutation puts 1,500 into the split `"train"` and 297 into `"test"`.
        train_data_dir (`str`, *optional*):
            A directory of images. In order of precedence: one written by `save_to_disk` of the `datasets` library;
            IDX files named as those of MNIST; parquet files; image files, whose directories are the classes. Splits
            are told apart by the names that these formats give them; what has no named splits is the split `"train"`.
        resolution (`int`, *optional*):
            Height and width in pixels. Other images are resized to fit on their shorter side and cropped at the
            centre. By default the images must be squares of one size, which is kept.
        split (`str`, defaults to `"train"`):
            The split to load.
        image_column (`str`, *optional*):
            The column of images; needed when there are several. IDX files and the digits have no columns.
        label_column (`str`, *optional*):
            The column of labels: a `ClassLabel` feature, or integers, booleans or strings with `class_names`. By
            default the only `ClassLabel` feature; without any, the data set is unconditional.
        class_names (`list[str]`, *optional*):
            The classes, in order. Named labels (`ClassLabel` and strings) are looked up in it, integers and booleans
            (false, true) index it.
            By default the classes that the `ClassLabel` feature declares, or the ten digits for IDX files. The list
            of classes is never read from the records.
        unconditional (`bool`, defaults to `False`):
            Whether to ignore the labels.

    Returns:
        `ImageDataset`: The decoded images with their labels.

    Raises:
        InputError: If the source does not exist or cannot be read, or if its records do not satisfy the above.
    """
    if (dataset_name is None) == (train_data_dir is None):
        raise InputError("Pass either --dataset_name or --train_data_dir, and not both.")
    _check_class_names(class_names)
    if resolution is not None and resolution < 1:
        raise InputError(f"--resolution is {resolution}, so pass a number of pixels above 0.")
    array_options: dict[str, Any] = {
        "resolution": resolution,
        "class_names": class_names,
        "unconditional": unconditional,
    }
    column_options: dict[str, Any] = {"image_column": image_column, "label_column": label_column, **array_options}

    if dataset_name == "digits":
        _refuse_columns("The digits have", image_column, label_column)
        return _from_arrays(*_read_digits(split), **array_options)
    if dataset_name is not None:
        return to_image_dataset(_load_from_hub(dataset_name, split), **column_options)

    assert train_data_dir is not None
    directory = Path(train_data_dir)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory, so pass the one that holds the images as --train_data_dir.")
    if has_idx_files(directory):
        _refuse_columns("IDX files have", image_column, label_column)
        return _from_arrays(*read_idx_dataset(directory, split), **array_options)
    # `datasets` works on a copy of the records, which must not stay behind in the user's cache.
    with tempfile.TemporaryDirectory() as cache_dir:
        return to_image_dataset(_load_from_directory(directory, split, cache_dir), **column_options)


def to_image_dataset(
    dataset: "datasets.Dataset | ImageDataset",
    *,
    resolution: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: list[str] | None = None,
    unconditional: bool = False,
) -> ImageDataset:
    """Decodes and checks a `datasets.Dataset`; an [`ImageDataset`] is returned as it is.

    Args:
        dataset (`datasets.Dataset` or `ImageDataset`):
            One split. Of an `ImageDataset` only the resolution is checked and, with `unconditional`, the labels are
            dropped; its columns and classes are settled.
        resolution (`int`, *optional*):
            As in [`load_image_dataset`].
        image_column (`str`, *optional*):
            As in [`load_image_dataset`].
        label_column (`str`, *optional*):
            As in [`load_image_dataset`].
        class_names (`list[str]`, *optional*):
            As in [`load_image_dataset`].
        unconditional (`bool`, defaults to `False`):
            As in [`load_image_dataset`].

    Returns:
        `ImageDataset`: The decoded images with their labels.

    Raises:
        InputError: If `dataset` is not one split, or if its records do not satisfy what [`load_image_dataset`] asks.
    """
    if isinstance(dataset, ImageDataset):
        if resolution not in (None, dataset.resolution):
            raise InputError(
                f"The images were loaded with {dataset.resolution} pixels a side, so load them with "
                f"resolution={resolution} or ask for {dataset.resolution}."
            )
        dataset = _without_labels(dataset.images) if unconditional else dataset
        _check_image_dataset(dataset)
        return dataset
    if not isinstance(dataset, datasets.Dataset):
        raise InputError(
            f"{type(dataset).__name__} is not one split of a data set, so pass a datasets.Dataset such as "
            'dataset["train"].'
        )
    if len(dataset) == 0:
        raise InputError("The data set is empty, so pass one that has records.")

    dataset = dataset.with_format(None)
    image_column = _find_image_column(dataset.features, image_column)
    label_column = None if unconditional else _find_label_column(dataset.features, label_column, class_names)
    if label_column is None:
        return _without_labels(_to_tensor(_read_images(dataset, image_column), len(dataset), resolution))
    # Labels before images: they are refused within seconds, images may take an hour.
    labels, class_names = _read_labels(dataset, label_column, class_names)
    return ImageDataset(_to_tensor(_read_images(dataset, image_column), len(dataset), resolution), labels, class_names)


def _check_image_dataset(dataset: ImageDataset) -> None:
    """What the mechanisms' sensitivity rests on, of an `ImageDataset` that anyone may have made."""
    images, labels = dataset.images, dataset.labels
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(
            f"The images are {images.dtype} of shape {tuple(images.shape)}, so make them uint8 of shape "
            "(N, 1 or 3, side, side)."
        )
    if len(images) == 0:
        raise InputError("The data set is empty, so pass one that has records.")
    if images.shape[2] != images.shape[3]:
        raise InputError(f"The images are {images.shape[3]}x{images.shape[2]} pixels, so make them square.")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise InputError(
            f"The labels are {labels.dtype} of shape {tuple(labels.shape)}, so make them int64, one for each image."
        )
    if labels.min() < 0 or labels.max() >= (dataset.num_classes or 1):
        raise InputError("A label is none of the declared classes, so correct it or declare its class in class_names.")
    _check_class_names(dataset.class_names)


def _check_class_names(class_names: list[str] | None) -> None:
    if class_names is not None and len(set(class_names)) != len(class_names):
        raise InputError(f"The classes {', '.join(class_names)} are not all different, so give each a name of its own.")


def _refuse_columns(source: str, image_column: str | None, label_column: str | None) -> None:
    if image_column is not None or label_column is not None:
        raise InputError(f"{source} no columns to choose from, so leave out --image_column and --label_column.")


def _without_labels(images: torch.Tensor) -> ImageDataset:
    return ImageDataset(images, torch.zeros(len(images), dtype=torch.int64))


# Sources


def _read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.RandomState(0).permutation(1797)
    records = {"train": order[:NUM_DIGITS_TRAIN], "test": order[NUM_DIGITS_TRAIN:]}
    if split not in records:
        raise InputError(
            f"The digits have the splits 'train' and 'test' only, so pass one of them instead of {split!r}."
        )
    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)
    return images[records[split]], digits.target[records[split]]


def _load_from_hub(name: str, split: str) -> datasets.Dataset:
    try:
        # One request first, because `load_dataset` retries for long before it says that the Hub is out of reach. Who
        # has chosen to be offline is served from the cache.
        with contextlib.suppress(OfflineModeIsEnabled):
            HfApi().dataset_info(name, timeout=HUB_TIMEOUT_SECONDS)
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # the Hub client, its HTTP library and `datasets` each raise their own
        raise InputError(
            f"The split {split!r} of {name!r} cannot be loaded from the Hub ({_reason(error)}), so check its name and "
            "your connection, set HF_HUB_OFFLINE=1 to use a cached copy, or pass a local copy as --train_data_dir."
        ) from error


def _load_from_directory(directory: Path, split: str, cache_dir: str) -> datasets.Dataset:
    try:
        if (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file():
            return _load_saved(directory, split)
        if files := [path for path in sorted(directory.rglob("*.parquet")) if path.name != "metadata.parquet"]:
            return _load_parquet(directory, files, split, cache_dir)
        return _load_image_files(directory, split, cache_dir)
    except InputError:
        raise
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise InputError(
            # The error's own words may have the names of files, which are as sensitive as the images.
            f"{directory} cannot be read as saved data set, IDX, parquet or image files ({type(error).__name__}), so "
            "check what --train_data_dir holds."
        ) from None


def _load_saved(directory: Path, split: str) -> datasets.Dataset:
    saved = datasets.load_from_disk(str(directory))
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved, str(saved.split): saved}
    if split not in splits:
        raise _no_such_split(directory, split)
    return splits[split]


def _load_parquet(directory: Path, files: list[Path], split: str, cache_dir: str) -> datasets.Dataset:
    named = [path for path in files if split in path.name or path.parent.name == split]
    if not named and split != "train":
        raise _no_such_split(directory, split)
    paths = [glob.escape(str(path.resolve())) for path in named or files]
    return datasets.load_dataset("parquet", data_files={split: paths}, split=split, cache_dir=cache_dir)


def _load_image_files(directory: Path, split: str, cache_dir: str) -> datasets.Dataset:
    # Left to itself, `datasets` takes any name with "train" or "test" in it for a split, a class or a file as much as
    # a directory, and drops all others without a word. So the split's directory is found here.
    directories = {path.name for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")}
    has_splits = bool(directories) and directories <= SPLIT_DIRECTORIES
    if split in directories and not has_splits:
        raise InputError(
            f"{directory / split} may be a split or a class, since not all directories beside it are splits, so pass "
            "it as --train_data_dir if it is the split and rename it if it is a class."
        )
    if split not in directories and (has_splits or split != "train"):
        raise _no_such_split(directory, split)
    root = directory / split if has_splits else directory
    if not any(path.suffix.lower() in PIL.Image.registered_extensions() for path in root.rglob("*")):
        raise InputError(f"{root} holds no images, so pass the directory that does as --train_data_dir.")
    files = {split: f"{glob.escape(str(root.resolve()))}/**"}
    return datasets.load_dataset("imagefolder", data_files=files, split=split, cache_dir=cache_dir)


def _no_such_split(directory: Path, split: str) -> InputError:
    return InputError(f"{directory} has no split {split!r}, so pass one that it has or another --train_data_dir.")


def _reason(error: Exception) -> str:
    """An error of a library in the first sentence of its own words."""
    first_line = f"{error}\n".splitlines()[0]
    return f"{type(error).__name__}: {first_line.split('. ')[0].rstrip('.:')}"


# Columns and labels


def _find_image_column(features: datasets.Features, image_column: str | None) -> str:
    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if image_column is not None:
        _check_column_exists(features, image_column, "--image_column")
        if image_column not in columns:
            raise InputError(
                f"The column {image_column!r} does not hold images, so name another as --image_column or cast it to "
                "datasets.Image first."
            )
        return image_column
    if not columns:
        raise InputError(
            f"The data set has no image column among {', '.join(features)}, so cast the one that holds images to "
            "datasets.Image first."
        )
    if len(columns) > 1:
        raise InputError(
            f"The data set has several image columns ({', '.join(columns)}), so pass one of them as --image_column."
        )
    return columns[0]


def _find_label_column(
    features: datasets.Features, label_column: str | None, class_names: list[str] | None
) -> str | None:
    if label_column is not None:
        _check_column_exists(features, label_column, "--label_column")
        return label_column
    columns = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(columns) > 1:
        raise InputError(
            f"The data set has several label columns ({', '.join(columns)}), so pass one of them as --label_column."
        )
    if not columns and class_names is not None:
        raise InputError(
            "Class names are given but no column is declared to hold labels, so pass --label_column with one of "
            f"{', '.join(features)}."
        )
    undeclared = [name for name in features if name.lower() in LABEL_LIKE]
    if not columns and undeclared:
        raise InputError(
            f"The column {undeclared[0]!r} does not declare its classes, so pass --label_column {undeclared[0]} with "
            "--class_names, or --unconditional to ignore it."
        )
    return columns[0] if columns else None


def _check_column_exists(features: datasets.Features, column: str, option: str) -> None:
    if column not in features:
        raise InputError(f"There is no column {column!r}, so pass {option} with one of {', '.join(features)}.")


def _read_labels(
    dataset: datasets.Dataset, label_column: str, class_names: list[str] | None
) -> tuple[torch.Tensor, list[str]]:
    feature = dataset.features[label_column]
    classes: dict[Hashable, int]
    if isinstance(feature, datasets.ClassLabel):
        class_names = class_names or feature.names
        index_of = {name: index for index, name in enumerate(class_names)}
        classes = {label: index_of[name] for label, name in enumerate(feature.names) if name in index_of}
    elif not isinstance(feature, datasets.Value) or not (_is_index(feature) or _is_string(feature)):
        raise InputError(
            f"The column {label_column!r} holds neither class labels nor integers nor booleans nor strings, so name "
            "another as --label_column."
        )
    elif class_names is None:
        raise InputError(
            f"The column {label_column!r} does not declare its classes and they must not be read from the records, so "
            "pass --class_names."
        )
    elif _is_index(feature):
        classes = {index: index for index in range(len(class_names))}
    else:
        classes = {name: index for index, name in enumerate(class_names)}
    return _encode_labels(dataset[label_column][:], classes), list(class_names)


def _is_index(feature: datasets.Value) -> bool:
    return pa.types.is_integer(feature.pa_type) or pa.types.is_boolean(feature.pa_type)  # of false and true, 0 and 1


def _is_string(feature: datasets.Value) -> bool:
    return pa.types.is_string(feature.pa_type) or pa.types.is_large_string(feature.pa_type)


def _encode_labels(labels: list[Hashable], classes: dict[Hashable, int]) -> torch.Tensor:
    indices = [classes.get(label, -1) for label in labels]
    if -1 in indices:
        raise InputError(
            f"The label of record {indices.index(-1)} is missing or none of the declared classes, so "
            "correct it, declare its class with --class_names, or pass --unconditional."
        )
    return torch.tensor(indices, dtype=torch.int64)


# Images


def _from_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    resolution: int | None,
    class_names: list[str] | None,
    unconditional: bool,
) -> ImageDataset:
    """Grey images of shape `(N, H, W)` with the integers that label them, ten digits unless names are given."""
    if len(images) == 0:
        raise InputError("The data set is empty, so pass one that has records.")
    if not unconditional:
        class_names = list(class_names or map(str, range(10)))
        labels = _encode_labels(labels.tolist(), {index: index for index in range(len(class_names))})
    side = resolution or images.shape[1]
    if images.shape[1:] == (side, side):
        pixels = torch.from_numpy(images[:, np.newaxis])
    else:
        pixels = _to_tensor(map(PIL.Image.fromarray, images), len(images), resolution)
    return _without_labels(pixels) if unconditional else ImageDataset(pixels, labels, class_names)


def _read_images(dataset: datasets.Dataset, image_column: str) -> Iterator[PIL.Image.Image]:
    """Decodes the images one by one, turned upright where their EXIF data says how they were held."""
    feature = datasets.Image(mode=dataset.features[image_column].mode)
    encoded = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    for index, record in enumerate(encoded):
        try:
            image = feature.decode_example(record[image_column])
            image.load()  # nothing more to do for an image, but a missing one decodes to `None`
        except Exception:  # a damaged file makes a decoder raise anything, and the original would show the file's name
            raise InputError(
                f"The image of record {index} is empty or cannot be decoded, so repair or remove that record."
            ) from None
        yield image


def _to_tensor(images: Iterable[PIL.Image.Image], num_images: int, resolution: int | None) -> torch.Tensor:
    """Images of one kind as `uint8` of shape `(N, C, resolution, resolution)`."""
    progress = tqdm(images, total=num_images, desc="Decoding images", leave=False)
    images = (_to_grey_or_rgb(image, index) for index, image in enumerate(progress))
    first = next(images)
    side = resolution or first.width
    pixels = _allocate((num_images, len(first.getbands()), side, side))
    for index, image in enumerate(itertools.chain([first], images)):
        if image.mode != first.mode:
            raise InputError(
                f"Record {index} is {KINDS[image.mode]} but record 0 is {KINDS[first.mode]}, so convert all images to "
                "one of the two."
            )
        if image.size != (side, side):
            if resolution is None:
                raise InputError(
                    f"Record {index} is {image.width}x{image.height} pixels and not all images are squares of one "
                    "size, so pass --resolution to resize and crop them."
                )
            image = PIL.ImageOps.fit(image, (side, side))
        pixels[index] = np.atleast_3d(image).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def _to_grey_or_rgb(image: PIL.Image.Image, index: int) -> PIL.Image.Image:
    if image.mode in GREY_MODES:
        return image.convert("L")
    if image.mode in COLOUR_MODES:
        return image.convert("RGB")
    raise InputError(
        f"The image of record {index} has the mode {image.mode!r}, which is neither 8-bit grey nor RGB, so convert "
        "the images to one of these."
    )


def _allocate(shape: tuple[int, ...]) -> np.ndarray:
    if math.prod(shape) <= MAX_BYTES_IN_MEMORY:
        return np.empty(shape, dtype=np.uint8)
    # The file has no name: the system frees it with the last reference to the memory map.
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
