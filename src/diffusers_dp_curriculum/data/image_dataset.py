"""Loads and checks image data sets.

Every source becomes an [`ImageDataset`]: the records are decoded once, checked, and held as bytes. This module is not a
mechanism: what it loads is as sensitive as the source. Error messages name a record by its index, never by its file or
its content.
"""

import hashlib
import tempfile
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch

from ..arithmetic import own_arithmetic
from ..checks import check_one_source
from ..errors import InputError
from ..files import local_path
from ..transfers import to_device
from ..units import RECORD
from .class_lists import Source, check_no_classes_are_lost, describe_classes, find_classes
from .class_names import checked_class_names
from .columns import classes_of_numbers, encode_labels, find_image_column, find_label_column, read_labels
from .dataset_info import DatasetInfo
from .file_inventory import OTHER_FORMAT, FileInventory, is_document
from .found_folders import check_no_files_are_lost
from .grouping import Units
from .idx import find_idx_files, has_idx_files, is_idx, read_idx_dataset
from .image_decoding import decode_column, is_grey, to_tensor
from .pixel_format import PixelFormat
from .silence import no_messages
from .sources import load_from_directory, load_from_hub, read_digits
from .users import advice_on_users, describe_users, number_users, read_users


@dataclass(eq=False, repr=False)  # without `repr`, so that printing a data set does not print records
class ImageDataset(torch.utils.data.Dataset):
    """Labelled images, decoded once and held as `uint8`.

    An item is an image, `float32` in [0, 1] of shape `(C, H, W)`, and its label, an `int`.

    Args:
        images (`torch.Tensor`):
            `uint8` of shape `(N, C, H, W)` with `C` 1 (grey) or 3 (RGB) and `H == W`. It may be backed by a
            memory-mapped temporary file, which is deleted together with the tensor. On PyTorch's device "meta" it has
            a shape and no pixels, which is enough for a plan.
        labels (`torch.Tensor`):
            `int64` of shape `(N,)`; all zero for an unconditional data set.
        class_names (`list[str]`, *optional*):
            The name of each class. `None` for an unconditional data set.
        users (`torch.Tensor`, *optional*):
            `int64` of shape `(N,)`: the number of each record's user, from 0 to the number of users - 1, each of whom
            has a record. With users the unit of privacy is a user with all records, otherwise it is a record.
        provenance (`dict[str, str]`):
            Lines for the plan about where the records and their classes come from, by their titles. They are for the
            owner of the data and never published.
        directory (`Path`, *optional*):
            The directory that the records were loaded from, in which no run may write.

    Examples:
        >>> import torch
        >>> from diffusers_dp_curriculum import ImageDataset
        >>> images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8)
        >>> labels = torch.arange(60) % 2
        >>> dataset = ImageDataset(images, labels, class_names=["healthy", "ill"])

        >>> len(dataset), dataset.num_classes, dataset.resolution
        (60, 2, 8)
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: list[str] | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    directory: Path | None = None
    users: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index].float() / 255, int(self.labels[index])

    @property
    def info(self) -> DatasetInfo:
        """`DatasetInfo`: The public description of the data set, which holds no record."""
        class_names = None if self.class_names is None else tuple(self.class_names)
        image = self.images.shape[1], self.images.shape[-1], class_names
        if self.users is None:
            return DatasetInfo(len(self), *image)
        return DatasetInfo(None, *image, num_users=len(self.units))

    @cached_property
    def units(self) -> Units:
        """`Units`: The units of privacy: the users, or else the records."""
        return Units(len(self), self.users)

    @property
    def num_channels(self) -> int:
        """`int`: 1 for grey images, 3 for RGB."""
        return self.info.num_channels

    @property
    def resolution(self) -> int:
        """`int`: Height and width of the images in pixels."""
        return self.info.resolution

    @property
    def num_classes(self) -> int | None:
        """`int` or `None`: The number of classes; `None` for an unconditional data set."""
        return self.info.num_classes

    @property
    def is_decoded(self) -> bool:
        """`bool`: Whether the images have pixels, and not a shape alone."""
        return not self.images.is_meta

    def batch(
        self, indices: torch.Tensor | slice, device: torch.device | str = "cpu"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return some of the records in the form that a diffusion model takes.

        Args:
            indices (`torch.Tensor` or `slice`): The indices of the records, of any shape such as `(n,)`.
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): The device of the returned tensors.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Images, `float32` in [-1, 1] of shape `(n, C, H, W)`, and labels,
            `int64` of shape `(n,)`.
        """
        return self.to_model_range(to_device(self.images[indices], device)), to_device(self.labels[indices], device)

    @staticmethod
    def to_model_range(images: torch.Tensor) -> torch.Tensor:
        """Map pixels to the range that diffusion models use.

        Args:
            images (`torch.Tensor`): `uint8` pixels of any shape.

        Returns:
            `torch.Tensor`: `float32` in [-1, 1], of the same shape.
        """
        return images.float() / 127.5 - 1

    def checksum(self, key: bytes) -> str:
        """Compute a keyed checksum of all records; without the key it cannot be used to test a guess at the records.

        Args:
            key (`bytes`): The key, at most 64 bytes.

        Returns:
            `str`: 32 hexadecimal digits.
        """
        checksum = hashlib.blake2b(key=key, digest_size=16)
        if self.is_decoded:
            checksum.update(self.images.contiguous().numpy())
        checksum.update(self.labels.contiguous().numpy())
        if self.users is not None:
            checksum.update(self.users.contiguous().numpy())
        return checksum.hexdigest()


@own_arithmetic()
def load_image_dataset(
    *,
    dataset_name: str | None = None,
    train_data_dir: str | None = None,
    resolution: int | None = None,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    user_column: str | None = None,
    user_directory_level: int | None = None,
    class_names: list[str] | None = None,
    unconditional: bool = False,
    accept_found_classes: bool = False,
    accept_left_out_files: bool = False,
    decode: bool = True,
    channels: int | None = None,
    pixel_range: list[float] | None = None,
    background: str | None = None,
) -> ImageDataset:
    """Load one split of an image data set from the Hub, from a directory, or from scikit-learn.

    Args:
        dataset_name (`str`, *optional*):
            A data set on the Hub, or `"digits"`: scikit-learn's 1,797 handwritten digits of 8x8 pixels, of which a
            fixed permutation puts 1,500 into the split `"train"` and 297 into `"test"`.
        train_data_dir (`str`, *optional*):
            A directory of images. In order of precedence: IDX files named as those of MNIST; a data set written by
            `save_to_disk` of the `datasets` library; parquet files; image files. If image files lie in
            two or more directories, these are the classes, including empty ones; with a `metadata.csv`,
            `metadata.jsonl` or `metadata.parquet`, the records and their labels are the ones that it lists. Splits are
            recognized by the names that these formats give them; data without named splits is the split `"train"`.
        resolution (`int`, *optional*):
            Height and width in pixels. Images of another size are resized so that their shorter side fits, and cropped
            at the centre. By default all images must be squares of one size, which is kept.
        split (`str`, defaults to `"train"`):
            The split to load.
        image_column (`str`, *optional*):
            The column of images; needed if there are several. IDX files and the digits have no columns.
        label_column (`str`, *optional*):
            The column of labels: a `ClassLabel` feature, or integers, booleans or strings with `class_names`. By
            default the only `ClassLabel` feature; if there is none, the data set is unconditional.
        user_column (`str`, *optional*):
            The column that says whose image each is, of strings or integers. The unit of privacy is then a user with
            all images, and otherwise one image. Names of users are never printed or published.
        user_directory_level (`int`, *optional*):
            For image files in directories of users, the level of these directories: 1 for those in `train_data_dir` (or
            in that of its split), 2 for those in them. The classes are the directories of level 1, or of level 2 if
            those of level 1 are users.
        class_names (`list[str]`, *optional*):
            The classes, in order. Labels are looked up in the list by their names, also integers and booleans if
            the names are such values ("1", "2" or "no", "yes"); otherwise integers and booleans are indices into it.
            By default the classes that the `ClassLabel` feature declares, the directories
            of image files, or the ten digits for IDX files. The list is never read from the records, because it is
            published.
        unconditional (`bool`, defaults to `False`):
            Whether to ignore the labels, and the directories of image files.
        accept_found_classes (`bool`, defaults to `False`):
            Whether to accept, without `class_names`, a list of classes that may depend on which records there are, such
            as the list of `datasets.load_dataset("imagefolder", ...)`. The list will be published.
        accept_left_out_files (`bool`, defaults to `False`):
            Whether to load a part of the files only, where others may be records: images in formats that Pillow does
            not read, links whose files have not been fetched, images that the metadata do not name, files of another
            format, or parquet files that are missing.
        decode (`bool`, defaults to `True`):
            Whether to decode the images. Otherwise only the first one of a column is decoded, and the data set has the
            shape of the images and no pixels, so that `describe_plan` of a trainer takes no longer with more images.
        channels (`int`, *optional*):
            1 converts all images to grey, and 3 to RGB. By default grey images stay grey and colour images stay in
            colour, and the two must not be mixed.
        pixel_range (`list[float]`, *optional*):
            Two numbers: the values that become black and white in images of more than 8 bits a pixel, such as 16-bit
            PNG and TIFF; values outside are clipped. Give the range that the device can deliver, never one that was
            measured on the records.
        background (`str`, *optional*):
            The colour to put behind transparent pixels, as a name or as "#rrggbb". By default images with transparent
            pixels are refused.

    Returns:
        `ImageDataset`: The decoded images with their labels.

    Raises:
        InputError: If the source does not exist or cannot be read, or if its records or classes do not fit the
            arguments.
        HubError: If the data set cannot be loaded from the Hub.

    Examples:
        >>> from diffusers_dp_curriculum import load_image_dataset
        >>> dataset = load_image_dataset(dataset_name="digits")
        >>> len(dataset), dataset.resolution, dataset.class_names[:3]
        (1500, 8, ['0', '1', '2'])
    """
    check_one_source(dataset_name, train_data_dir)
    class_names = checked_class_names(class_names)
    array_options: dict[str, Any] = {
        "pixel_format": PixelFormat(resolution, channels, pixel_range, background),
        "class_names": class_names,
        "unconditional": unconditional,
    }
    column_options: dict[str, Any] = {
        "image_column": image_column,
        "label_column": label_column,
        "user_column": user_column,
        "accept_found_classes": accept_found_classes,
        "decode": decode,
        **array_options,
    }

    if user_directory_level is not None and dataset_name is not None:
        raise InputError(
            f"{dataset_name} has no directories of users: give their column as `user_column` in the place of "
            "`user_directory_level`."
        )
    if dataset_name == "digits":
        _refuse_columns("The digits have", image_column, label_column, user_column)
        return _from_arrays(*read_digits(split), provenance={}, **array_options)
    if dataset_name is not None:
        return _from_source(load_from_hub(dataset_name, split, accept_left_out_files), **column_options)

    assert train_data_dir is not None
    if not str(train_data_dir):
        raise InputError("`train_data_dir` is empty: give the directory of images.")
    directory = local_path(train_data_dir)
    try:
        is_directory = directory.is_dir()
    except PermissionError:
        raise InputError(f"{directory} is in a directory that cannot be read: make that readable.") from None
    if not is_directory:
        what = "a file and not a directory" if directory.is_file() else "not a directory"
        raise InputError(f"{directory} is {what}: pass the one that holds the images as `train_data_dir`.")
    files = FileInventory.of_directory(directory)
    files.check_no_output(directory)
    if has_idx_files(directory):
        _refuse_columns("IDX files have", image_column, label_column, user_column)
        if user_directory_level is not None:
            raise InputError("IDX files lie in no directories of users: leave out `user_directory_level`.")
        images, labels = read_idx_dataset(directory, split)
        used = find_idx_files(directory, split)
        files.leave_out(f"not in the split {split!r}", lambda path: is_idx(path) and path not in used)
        files.leave_out("documents", lambda path: path not in used and is_document(path))
        files.leave_out(OTHER_FORMAT, lambda path: path not in used)
        files.check_nothing_is_lost(accept_left_out_files)
        return replace(
            _from_arrays(images, labels, provenance=files.provenance(), **array_options), directory=directory
        )
    # `datasets` makes a copy of the records, which must not remain in the user's cache.
    with tempfile.TemporaryDirectory() as cache_dir:
        with no_messages():
            source = load_from_directory(
                directory,
                files,
                split,
                class_names=class_names,
                unconditional=unconditional,
                accept_left_out_files=accept_left_out_files,
                user_directory_level=user_directory_level,
                cache_dir=cache_dir,
            )
        return replace(_from_source(source, **column_options), directory=directory)


@own_arithmetic()
def to_image_dataset(
    dataset: "datasets.Dataset | ImageDataset",
    *,
    resolution: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    user_column: str | None = None,
    class_names: list[str] | None = None,
    unconditional: bool = False,
    accept_found_classes: bool = False,
    accept_left_out_files: bool = False,
    channels: int | None = None,
    pixel_range: list[float] | None = None,
    background: str | None = None,
) -> ImageDataset:
    """Decode and check a `datasets.Dataset`; an [`ImageDataset`] is returned as it is.

    Args:
        dataset (`datasets.Dataset` or `ImageDataset`):
            One split. For an `ImageDataset` only `resolution`, `channels` and `unconditional` have an effect: the first
            two are checked, and with `unconditional` the labels are dropped.
        resolution (`int`, *optional*):
            As in [`load_image_dataset`].
        image_column (`str`, *optional*):
            As in [`load_image_dataset`].
        label_column (`str`, *optional*):
            As in [`load_image_dataset`].
        user_column (`str`, *optional*):
            As in [`load_image_dataset`]; an `ImageDataset` has its own `users`.
        class_names (`list[str]`, *optional*):
            As in [`load_image_dataset`].
        unconditional (`bool`, defaults to `False`):
            As in [`load_image_dataset`].
        accept_found_classes (`bool`, defaults to `False`):
            As in [`load_image_dataset`].
        accept_left_out_files (`bool`, defaults to `False`):
            Whether to accept that `datasets` has left out files beside the images, which may be records.
        channels (`int`, *optional*):
            As in [`load_image_dataset`]; an `ImageDataset` must have this number of channels.
        pixel_range (`list[float]`, *optional*):
            As in [`load_image_dataset`].
        background (`str`, *optional*):
            As in [`load_image_dataset`].

    Returns:
        `ImageDataset`: The decoded images with their labels.

    Raises:
        InputError: If `dataset` is not one split, or if its records or classes do not fit the arguments.

    Examples:
        >>> import datasets
        >>> from PIL import Image
        >>> from diffusers_dp_curriculum import to_image_dataset
        >>> columns = {"image": [Image.new("L", (10, 8)), Image.new("L", (8, 8))], "label": ["ill", "healthy"]}
        >>> dataset = to_image_dataset(
        ...     datasets.Dataset.from_dict(columns), resolution=8, label_column="label", class_names=["healthy", "ill"]
        ... )
        >>> dataset.images.shape, dataset.labels.tolist()
        (torch.Size([2, 1, 8, 8]), [1, 0])
    """
    pixel_format = PixelFormat(resolution, channels, pixel_range, background)
    if isinstance(dataset, ImageDataset):
        if resolution not in (None, dataset.resolution):
            raise InputError(
                f"The images were loaded with {dataset.resolution} pixels per side: load them with `resolution` "
                f"{resolution}, or ask for {dataset.resolution}."
            )
        if channels not in (None, dataset.num_channels):
            raise InputError(
                f"The images were loaded with {dataset.num_channels} channels: load them with `channels` {channels}."
            )
        if user_column is not None:
            raise InputError(
                "An ImageDataset has no columns: load it with `user_column`, or set its `users` to the number of each "
                "record's user."
            )
        if unconditional:
            unlabelled = _without_labels(dataset.images, dataset.provenance)
            dataset = replace(unlabelled, directory=dataset.directory, users=dataset.users)
        _check_image_dataset(dataset)
        return dataset
    if not isinstance(dataset, datasets.Dataset):
        raise InputError(
            f"{type(dataset).__name__} is not one split of a data set: pass a datasets.Dataset that is not streamed, "
            'such as dataset["train"], or an ImageDataset of tensors.'
        )
    class_names = checked_class_names(class_names)
    check_no_files_are_lost(dataset.with_format(None), accept_left_out_files)
    return _from_source(
        Source(dataset),
        decode=True,
        pixel_format=pixel_format,
        image_column=image_column,
        label_column=label_column,
        user_column=user_column,
        class_names=class_names,
        unconditional=unconditional,
        accept_found_classes=accept_found_classes,
    )


def unit_of(dataset: "datasets.Dataset | ImageDataset") -> str:
    """The unit of privacy of a data set: `"user"` if it is an [`ImageDataset`] that has users, else `"record"`.

    Args:
        dataset (`datasets.Dataset` or `ImageDataset`): The records.
    """
    return dataset.units.name if isinstance(dataset, ImageDataset) else RECORD


def _from_source(
    source: Source,
    *,
    pixel_format: PixelFormat,
    image_column: str | None,
    label_column: str | None,
    user_column: str | None,
    class_names: list[str] | None,
    unconditional: bool,
    accept_found_classes: bool,
    decode: bool,
) -> ImageDataset:
    if source.dataset.format["type"] == "custom":
        raise InputError(
            "The data set has a transform, which would not be applied, because records are decoded once: store its "
            "result with dataset.map(), or remove it with dataset.reset_format()."
        )
    dataset = source.dataset.with_format(None)
    if len(dataset) == 0:
        raise InputError("The data set is empty: pass one that has records.")
    image_column = find_image_column(dataset.features, image_column)
    if not isinstance(dataset.features[image_column], datasets.Image):
        dataset = dataset.cast_column(image_column, datasets.Image())
    source = replace(source, dataset=dataset)
    label_column = None if unconditional else find_label_column(dataset.features, label_column, class_names)
    users, about_users = _read_users(source, user_column)
    if label_column is None:
        if not unconditional:
            check_no_classes_are_lost(source)
        pixels = _read_pixels(dataset, image_column, pixel_format, decode)
        unlabelled = _without_labels(pixels, source.provenance | about_users | _advice(pixels))
        return replace(unlabelled, users=users)
    origin = "as given"
    if class_names is None:
        class_names, origin = find_classes(source, label_column, accept_found_classes)
    # Labels first: they are checked within seconds, while decoding images may take an hour.
    labels, class_names = read_labels(dataset, label_column, class_names)
    provenance = {**source.provenance, "classes": describe_classes(class_names, origin), **about_users}
    pixels = _read_pixels(dataset, image_column, pixel_format, decode)
    return ImageDataset(pixels, labels, class_names, provenance | _advice(pixels), users=users)


def _read_users(source: Source, user_column: str | None) -> tuple[torch.Tensor | None, dict[str, str]]:
    """The number of each record's user, and a line about the users for the plan."""
    if user_column is not None and source.users is not None:
        raise InputError("`user_column` and `user_directory_level` are both given: pass one of them.")
    if user_column is not None:
        users = read_users(source.dataset, user_column)
        return users, {"users": describe_users(users, f"from the column {user_column!r}")}
    if source.users is not None:
        users = number_users(source.users)
        return users, {"users": describe_users(users, "from the names of their directories")}
    return None, advice_on_users(source.dataset.features)


def _read_pixels(dataset: datasets.Dataset, image_column: str, pixel_format: PixelFormat, decode: bool) -> torch.Tensor:
    """Decode the images, or only the first one for the shape of all."""
    if decode:
        return decode_column(dataset, image_column, pixel_format)
    first = decode_column(dataset.select([0]), image_column, pixel_format)
    return torch.empty((len(dataset), *first.shape[1:]), dtype=torch.uint8, device="meta")


def _advice(pixels: torch.Tensor) -> dict[str, str]:
    """A line for the plan where grey images are stored in colour, whose noise would be as large as that of colours."""
    if pixels.is_meta or pixels.shape[1] == 1 or not is_grey(pixels):
        return {}
    return {"channels": "3, but all images are grey: pass `channels` 1, which needs less noise and draws no colours"}


def _check_image_dataset(dataset: ImageDataset) -> None:
    """Check what the sensitivity of the mechanisms relies on, because any code may have made the `ImageDataset`."""
    images, labels = dataset.images, dataset.labels
    for name, values in (("images", images), ("labels", labels)):
        if not isinstance(values, torch.Tensor):
            raise InputError(f"The {name} are {type(values).__name__}: make them a tensor of PyTorch.")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(
            f"The images are {images.dtype} of shape {tuple(images.shape)}: make them uint8 of shape (N, 1 or 3, side, "
            "side)."
        )
    if len(images) == 0:
        raise InputError("The data set is empty: pass one that has records.")
    if images.shape[2] != images.shape[3]:
        raise InputError(f"The images are {images.shape[3]}x{images.shape[2]} pixels: make them square.")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise InputError(
            f"The labels are {labels.dtype} of shape {tuple(labels.shape)}: make them int64, one for each image."
        )
    if labels.min() < 0 or labels.max() >= dataset.info.num_labels:
        raise InputError("A label is none of the declared classes: correct it, or declare its class in `class_names`.")
    checked_class_names(dataset.class_names)


def _refuse_columns(source: str, *columns: str | None) -> None:
    if any(column is not None for column in columns):
        raise InputError(
            f"{source} no columns to choose from: leave out `image_column`, `label_column` and `user_column`."
        )


def _without_labels(images: torch.Tensor, provenance: dict[str, str]) -> ImageDataset:
    provenance = {title: text for title, text in provenance.items() if title != "classes"}
    return ImageDataset(images, torch.zeros(len(images), dtype=torch.int64), None, provenance)


def _from_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    pixel_format: PixelFormat,
    class_names: list[str] | None,
    unconditional: bool,
    provenance: dict[str, str],
) -> ImageDataset:
    """Make a data set of grey images `(N, H, W)` and integer labels; the classes are the ten digits by default."""
    if len(images) == 0:
        raise InputError("The data set is empty: pass one that has records.")
    if not unconditional:
        origin = "as given" if class_names else "the ten digits"
        class_names = list(class_names or map(str, range(10)))
        provenance = {**provenance, "classes": describe_classes(class_names, origin)}
        labels = encode_labels(labels.tolist(), classes_of_numbers(class_names))
    side = images.shape[1]
    if images.shape[2] == side and pixel_format in (PixelFormat(), PixelFormat(side)):
        pixels = torch.from_numpy(images[:, np.newaxis])
    else:
        pixels = to_tensor(images, PIL.Image.fromarray, pixel_format)
    if unconditional:
        return _without_labels(pixels, provenance)
    return ImageDataset(pixels, labels, class_names, provenance)
