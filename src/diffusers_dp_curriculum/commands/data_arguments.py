"""The options that name a data set and say how to load it, for all commands that read images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checks import IMAGE_CHANNELS, RESOLUTION, at_least, check_background, check_one_source, check_pixel_range
from ..data.class_names import checked_class_names
from ..options import check_options, declared_options, options_of_group


if TYPE_CHECKING:
    from torch.utils.data import Dataset

_data = options_of_group("Data")


@dataclass(frozen=True)
class DataArguments:
    """The arguments of `load_image_dataset` that are flags."""

    dataset_name: str | None = _data(None, 'Hub id of the data set, or "digits".')
    train_data_dir: str | None = _data(
        None, "Image folder, directory saved by `datasets`, parquet files, or MNIST-like IDX files."
    )
    resolution: int | None = _data(
        None, "Resize and crop images to this size; by default their own size.", limits=RESOLUTION
    )
    channels: int | None = _data(
        None, "1 converts images to grey, 3 to RGB; by default they stay what they are.", limits=IMAGE_CHANNELS
    )
    pixel_range: list[float] | None = _data(
        None,
        "Two numbers: the values of black and white in images of more than 8 bits a pixel. Give the range that the "
        "device can deliver, never one measured on the records.",
    )
    background: str | None = _data(None, "Colour to put behind transparent pixels, as a name or #rrggbb.")
    image_column: str | None = _data(None, "Column with the images, if there are several.")
    label_column: str | None = _data(None, "Column with the labels, if there are several.")
    user_column: str | None = _data(
        None, "Column that says whose image it is: all images of one person are then protected together."
    )
    user_directory_level: int | None = _data(
        None,
        "Level of the directories that say whose image it is: 1 for those in --train_data_dir, 2 for those in them.",
        limits=at_least(1),
    )
    class_names: list[str] | None = _data(
        None, "The list of classes, in order, independent of the records; it is published."
    )
    unconditional: bool = _data(False, "Ignore labels and class directories.")
    accept_found_classes: bool = _data(
        False,
        "Publish the list of classes that was found, although one record may have added its own to it; --class_names "
        "is better.",
    )
    accept_left_out_files: bool = _data(
        False,
        "Train without files that may be records: of formats that are not read, linked to nothing, not named in the "
        "metadata, beside files of another format, or missing.",
    )

    def __post_init__(self) -> None:
        check_options(self)
        check_one_source(self.dataset_name, self.train_data_dir)
        checked_class_names(self.class_names)
        check_pixel_range(self.pixel_range)
        check_background(self.background)

    def load(self, **options: Any) -> "Dataset":
        """Load the data set that the arguments describe.

        Args:
            **options: Further arguments of `load_image_dataset`, and those that have another value than the flags.
        """
        from ..data.image_dataset import load_image_dataset

        arguments = {option.name: getattr(self, option.name) for option in declared_options(DataArguments)}
        return load_image_dataset(**{**arguments, **options})
