"""What the queries of a mechanism release for a warm-up, and the interface of such queries."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from ..data.dataset_info import DatasetInfo
from ..data.image_dataset import ImageDataset
from ..errors import InputError, StorageError
from ..files import sync
from ..pictures import image_grid
from ..privacy.accounting import Mechanism
from ..privacy.ledger import PrivacyLedger
from .randomness import MechanismRandomness


Released = TypeVar("Released", bound="Release")


class Release:
    """Something that has been released through a mechanism in the ledger, so that any use of it is post-processing.

    A subclass lists the attributes that make it up; its constructor takes them by the same names.
    """

    name: ClassVar[str]  # names the files
    tensors: ClassVar[tuple[str, ...]]  # the attributes that are tensors
    values: ClassVar[tuple[str, ...]]  # the attributes that JSON can hold
    mechanism: Mechanism | None

    def save_to_disk(self, path: str | Path) -> None:
        """Write everything that was released, and the ledger entry of the mechanism, so that it survives a power cut.

        Args:
            path (`str` or `Path`): The directory.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        description = path / f"{self.name}.json"
        description.unlink(missing_ok=True)  # it is written last, as a sign that the release is complete
        tensors = {name: getattr(self, name).contiguous() for name in self.tensors}
        save_file(tensors, path / f"{self.name}.safetensors")
        mechanism = None if self.mechanism is None else asdict(self.mechanism)
        entry = {"mechanism": mechanism, **{name: getattr(self, name) for name in self.values}}
        sync(path / f"{self.name}.safetensors")
        description.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
        sync(description)
        sync(path)

    @classmethod
    def load_from_disk(cls: type[Released], path: str | Path) -> Released:
        """Read what [`save_to_disk`] wrote.

        Args:
            path (`str` or `Path`): The directory.

        Raises:
            InputError: If `path` holds no release of this kind.
            StorageError: If the files are damaged.
        """
        path = Path(path)
        try:
            entry = json.loads((path / f"{cls.name}.json").read_text(encoding="utf-8"))
            tensors = load_file(path / f"{cls.name}.safetensors")
            mechanism = None if entry["mechanism"] is None else Mechanism(**entry["mechanism"])
            return cls(**tensors, **{**entry, "mechanism": mechanism})
        except FileNotFoundError as error:
            raise InputError(
                f"{path} holds no {cls.name.replace('_', ' ')} ({error.filename} is missing): give a directory that "
                "`save_to_disk` wrote."
            ) from None
        except Exception as error:  # of many types
            raise StorageError(
                f"The {cls.name.replace('_', ' ')} in {path} cannot be read ({type(error).__name__}): restore its "
                "files from a copy."
            ) from error


class ReleasedImages(Release, Dataset):
    """Released images as a `torch.utils.data.Dataset` of (image, label).

    The images have been released through a mechanism in the ledger, so that any use of them is post-processing.

    Args:
        images (`torch.Tensor`): `(M, channels, height, width)` float32 in [0, 1].
        labels (`torch.Tensor`): `(M,)` int64; all zero where there are no classes.
        mechanism (`Mechanism`, *optional*): The ledger entry that paid for the images; None for public images.
        class_names (`list[str]`, *optional*): The name of each class; None for an unconditional data set.
        class_counts (`list[float]`, *optional*):
            Approximate number of records of each class, if the mechanism has released it as well.
    """

    name = "released_images"  # names the stage, the files and the published picture
    tensors = ("images", "labels")
    values = ("class_names", "class_counts")

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        mechanism: Mechanism | None = None,
        class_names: list[str] | None = None,
        class_counts: list[float] | None = None,
    ):
        self.images = images
        self.labels = labels
        self.mechanism = mechanism
        self.class_names = class_names
        self.class_counts = class_counts

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], int(self.labels[index])

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Some of the images, `(n, channels, height, width)` float32 in [0, 1], and their labels, `(n,)` int64.

        Args:
            indices (`torch.Tensor`): The indices of the images, of shape `(n,)`.
        """
        return self.images[indices], self.labels[indices]

    def to_grid(self, images_per_class: int = 10) -> Image.Image:
        """A picture of the images, with one row per class.

        Args:
            images_per_class (`int`, *optional*, defaults to 10): Largest number of columns.
        """
        classes = self.labels.unique()
        columns = min([images_per_class, *(int((self.labels == label).sum()) for label in classes)])
        rows = [self.images[self.labels == label][:columns] for label in classes]
        return image_grid(torch.cat(rows), columns)


class Queries(Protocol):
    """Queries of the records, described once for both the plan and the release.

    Attributes:
        release_type (`type[Release]`): The class of what the queries release.
    """

    release_type: ClassVar[type[Release]]

    def mechanism(self, info: DatasetInfo) -> Mechanism:
        """The ledger entry of all queries, made from public values only."""
        ...

    def noisy_sums(self, records: ImageDataset, ledger: PrivacyLedger, randomness: MechanismRandomness) -> torch.Tensor:
        """Make the queries, each step within [`Execution.step`]; sums of shape `(steps, classes, ...)`."""
        ...

    def release(self, records: ImageDataset, ledger: PrivacyLedger, randomness: MechanismRandomness) -> Release:
        """Make the queries, and what follows from their noisy sums."""
        ...
