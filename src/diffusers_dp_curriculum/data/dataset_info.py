"""The public description of a data set of sensitive images."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..units import RECORD, USER


@dataclass(frozen=True)
class DatasetInfo:
    """The public description of a data set, used by plans, checks, previews and cards; it holds no record.

    All of it is assumed to be public, and the privacy statement lists it among its assumptions.

    Args:
        num_records (`int`, *optional*): N, the number of records; None with users, which makes it a secret.
        num_channels (`int`): 1 for grey images, 3 for RGB, or the channels of latents (see [`latent_info`]).
        resolution (`int`): Height and width of the images in pixels, or of latents.
        class_names (`tuple[str, ...]`, *optional*): The name of each class; None for an unconditional data set.
        num_users (`int`, *optional*): The number of users, if the unit of privacy is a user with all records.

    Examples:
        >>> from diffusers_dp_curriculum import DatasetInfo
        >>> info = DatasetInfo(num_records=60_000, num_channels=1, resolution=28, class_names=("shirt", "boot"))
        >>> info.num_classes, info.image_shape
        (2, (1, 28, 28))
    """

    num_records: int | None
    num_channels: int
    resolution: int
    class_names: tuple[str, ...] | None = None
    num_users: int | None = None

    @property
    def unit(self) -> str:
        """`str`: The unit of privacy, `"record"` or `"user"`."""
        return RECORD if self.num_users is None else USER

    @property
    def num_units(self) -> int:
        """`int`: The number of units of privacy: of users, or else of records."""
        number = self.num_records if self.num_users is None else self.num_users
        assert number is not None
        return number

    @property
    def num_classes(self) -> int | None:
        """`int` or `None`: The number of classes; None for an unconditional data set."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def num_labels(self) -> int:
        """`int`: The number of values that a label can have: the number of classes, or 1 without classes."""
        return self.num_classes or 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`tuple[int, int, int]`: Channels, height and width of an image."""
        return self.num_channels, self.resolution, self.resolution

    @property
    def images_shape(self) -> tuple[int, int, int, int]:
        """`tuple[int, int, int, int]`: The number of units of privacy, then channels, height and width."""
        return self.num_units, *self.image_shape


def classes_in_words(class_names: Iterable[str]) -> str:
    """List classes with their indices, as in "0 = shirt, 1 = boot"."""
    return ", ".join(f"{index} = {name}" for index, name in enumerate(class_names))
