"""Mechanism 1: central images, noisy aggregates of random samples of each class.

This is one of the two places that read sensitive records. "From Easy to Hard" (DP-FETA, S&P 2025, arXiv:2504.01395)
introduces mean and mode images; the queries here bound what zeroing out one record changes: nothing is divided by a
private count, and the sensitivity is fixed before any record is read.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from ..arithmetic import own_arithmetic
from ..checks import MODE_BINS, STATISTIC
from ..data.image_dataset import ImageDataset, to_image_dataset
from ..errors import InputError
from ..pictures import image_grid
from ..privacy.accounting import Mechanism
from ..privacy.ledger import PrivacyLedger
from .randomness import MechanismRandomness


VALUES_AT_ONCE = 2**22  # of the sampled records: what is in memory in float64 at a time


class CentralImageDataset(Dataset):
    """Central images as a `torch.utils.data.Dataset` of (image, label).

    What it holds has been released through a mechanism in the ledger: using it any further is post-processing.

    Args:
        images (`torch.Tensor`): `(M, channels, height, width)` float32 in [0, 1].
        labels (`torch.Tensor`): `(M,)` int64; all zero where there are no classes.
        mechanism (`Mechanism`): The ledger entry that paid for the images.
        class_names (`list[str]`, *optional*): None for an unconditional data set.
        class_counts (`list[float]`, *optional*):
            How many records each class has about, from the noisy counts that mean queries release; None for a mode.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        mechanism: Mechanism,
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

    @classmethod
    @own_arithmetic()  # of the post-processing, too: nothing may fail once the records have been read
    def from_dataset(
        cls,
        dataset: Any,
        images_per_class: int = 5,
        statistic: str = "mean",
        noise_multiplier: float = 5.0,
        sample_rate: float = 0.1,
        *,
        ledger: PrivacyLedger,
        resolution: int | None = None,
        pool_factor: int = 1,
        mode_bins: int = 8,
        randomness: MechanismRandomness | None = None,
    ) -> "CentralImageDataset":
        """Query `images_per_class` central images of every class.

        Each query includes every record independently with probability `sample_rate` and releases one image of each
        class (the classes are disjoint, so they share one sensitivity). Within a query:

        - *mean*: a record (x, c) adds (pool(x) - 1/2, beta) to the sum and the count of class c. With d values an image
          the sensitivity is sqrt(d / 4 + beta^2); the image is 1/2 + noisy sum / noisy count.
        - *mode*: a record adds one vote at each of its d values to a histogram of `mode_bins` bins; the sensitivity is
          sqrt(d); the image is the centre of the fullest bin.

        Args:
            dataset (`datasets.Dataset` or `ImageDataset`): The sensitive records.
            images_per_class (`int`, *optional*, defaults to 5): Number of queries.
            statistic (`str`, *optional*, defaults to `"mean"`): `"mean"` or `"mode"`.
            noise_multiplier (`float`, *optional*, defaults to 5.0):
                Standard deviation of the noise over the sensitivity, for each query.
            sample_rate (`float`, *optional*, defaults to 0.1): Probability in (0, 1] of each record, in each query.
            ledger (`PrivacyLedger`): Where each query is recorded before it is made.
            resolution (`int`, *optional*): Height and width of the images, when `dataset` is not one size already.
            pool_factor (`int`, *optional*, defaults to 1):
                Area-pool images by this factor first; fewer values are less noisy. Divides the resolution.
            mode_bins (`int`, *optional*, defaults to 8): Bins of the histogram over [0, 1], at least 2.
            randomness (`MechanismRandomness`, *optional*): Where sampling and noise come from.

        Raises:
            InputError: If a value is out of range, or the ledger's target would be passed; nothing has been read or
                recorded then.
        """
        records = to_image_dataset(dataset, resolution=resolution)
        mechanism = central_image_mechanism(
            records.images.shape[1:], images_per_class, statistic, noise_multiplier, sample_rate, pool_factor, mode_bins
        )
        randomness = randomness or MechanismRandomness()
        ledger.check_affordable(mechanism)
        if randomness.why_not_private:
            ledger.mark_not_private(randomness.why_not_private)
        sampling, noise = randomness.generator(), randomness.generator()

        def add_noise(sums: torch.Tensor) -> torch.Tensor:
            return sums + mechanism.noise_multiplier * mechanism.sensitivity * randomness.normal(sums.shape, noise)

        pooled, counts = [], []
        for _ in range(images_per_class):
            with ledger.execution(replace(mechanism, steps=1)):
                if statistic == "mean":
                    released = add_noise(_mean_sums(records, sample_rate, pool_factor, sampling))
                else:
                    released = add_noise(_mode_votes(records, sample_rate, pool_factor, mode_bins, sampling))
            pooled.append(_means(released) if statistic == "mean" else _modes(released))
            if statistic == "mean":
                counts.append(_counts(released))
        channels, height, width = records.images.shape[1:]
        images = torch.cat(pooled).float().view(-1, channels, height // pool_factor, width // pool_factor)
        images = F.interpolate(images, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)
        labels = torch.arange(records.num_classes or 1).repeat(images_per_class)
        class_counts = (torch.stack(counts).mean(0) / sample_rate).clamp(min=0).tolist() if counts else None
        return cls(images, labels, mechanism, records.class_names, class_counts)

    def save_to_disk(self, path: str | Path) -> None:
        """Write the images and the mechanism's entry.

        Args:
            path (`str` or `Path`): The directory.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        save_file({"images": self.images.contiguous(), "labels": self.labels}, path / "central_images.safetensors")
        entry = {
            "mechanism": asdict(self.mechanism),
            "class_names": self.class_names,
            "class_counts": self.class_counts,
        }
        (path / "central_images.json").write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load_from_disk(cls, path: str | Path) -> "CentralImageDataset":
        """Read what [`save_to_disk`] wrote.

        Args:
            path (`str` or `Path`): The directory.

        Raises:
            InputError: If `path` holds no central images.
        """
        path = Path(path)
        try:
            entry = json.loads((path / "central_images.json").read_text(encoding="utf-8"))
            tensors = load_file(path / "central_images.safetensors")
        except FileNotFoundError as error:
            raise InputError(f"{path} holds no central images ({error.filename} is missing).") from None
        mechanism = Mechanism(**entry["mechanism"])
        return cls(tensors["images"], tensors["labels"], mechanism, entry["class_names"], entry["class_counts"])

    def to_grid(self, images_per_class: int = 10) -> Image.Image:
        """A `PIL.Image` with one row a class.

        Args:
            images_per_class (`int`, *optional*, defaults to 10): How many columns, at most.
        """
        classes = self.labels.unique()
        columns = min(images_per_class, len(self) // len(classes))
        rows = [self.images[self.labels == label][:columns] for label in classes]
        return image_grid(torch.cat(rows), columns)


def central_image_mechanism(
    image_shape: tuple[int, int, int],
    images_per_class: int,
    statistic: str,
    noise_multiplier: float,
    sample_rate: float,
    pool_factor: int = 1,
    mode_bins: int = 8,
) -> Mechanism:
    """The ledger entry of a set of queries, from public values alone: what a plan needs before anything is read.

    Args:
        image_shape (`tuple[int, int, int]`): Channels, height and width of the records.

    The others are those of [`CentralImageDataset.from_dataset`], as are the errors.
    """
    channels, height, width = image_shape
    STATISTIC.check("statistic", statistic)
    if pool_factor < 1 or height % pool_factor or width % pool_factor:
        raise InputError(
            f"Images of {height}x{width} cannot be pooled by {pool_factor}: choose a factor that divides both."
        )
    MODE_BINS.check("mode_bins", mode_bins)
    values = channels * (height // pool_factor) * (width // pool_factor)
    sensitivity = (values / 4 + _count_weight(values) ** 2) ** 0.5 if statistic == "mean" else values**0.5
    return Mechanism(f"central_images_{statistic}", noise_multiplier, sample_rate, images_per_class, sensitivity)


def _count_weight(values: int) -> float:
    """What a record adds to its class count, beta.

    A larger beta measures the count better and the pixels worse. With Delta^2 = d/4 + beta^2 the variance of a pixel
    of mean 1/2 + m is proportional to Delta^2 (1 + m^2 / beta^2); beta^2 = sqrt(d) / 4 minimises it at the worst m,
    |m| = 1/2.
    """
    return values**0.25 / 2


# What reads the records: sums over a Poisson sample, of which one record can change its own class alone.
# `PrivacyLedger.execution` settles the arithmetic for all of it.


def _poisson_sample(
    records: ImageDataset, sample_rate: float, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the sampled records in pieces: `(n, channels, height, width)` in [0, 255], and `(n, classes)` one-hot.

    In float64, in which sums of such numbers are exact, and so the same in any order.
    """
    included = torch.rand(len(records), generator=generator, dtype=torch.float64) < sample_rate
    at_once = max(VALUES_AT_ONCE // max(records.images.shape[1:].numel(), 64), 1)
    for index in included.nonzero()[:, 0].split(at_once):
        yield records.images[index].double(), F.one_hot(records.labels[index], records.num_classes or 1).double()


def _mean_sums(records: ImageDataset, sample_rate: float, pool_factor: int, generator: torch.Generator) -> torch.Tensor:
    """Per class the sum of (pool(x) - 1/2, beta), `(classes, values + 1)`."""
    classes, image_shape = records.num_classes or 1, records.images.shape[1:]
    sums = torch.zeros(classes, image_shape.numel(), dtype=torch.float64)
    counts = torch.zeros(classes, 1, dtype=torch.float64)
    for images, one_hot in _poisson_sample(records, sample_rate, generator):
        sums += one_hot.T @ images.flatten(1)
        counts += one_hot.sum(0)[:, None]
    # Pooling, scaling and centring are linear: done to the sum, they are done to every record in it.
    pooled = F.avg_pool2d(sums.view(classes, *image_shape), pool_factor).flatten(1) / 255 - counts / 2
    return torch.cat([pooled, _count_weight(pooled.shape[1]) * counts], dim=1)


def _mode_votes(
    records: ImageDataset, sample_rate: float, pool_factor: int, mode_bins: int, generator: torch.Generator
) -> torch.Tensor:
    """Per class and bin the number of votes for each value, `(classes, mode_bins, values)`."""
    channels, height, width = records.images.shape[1:]
    values = channels * (height // pool_factor) * (width // pool_factor)
    votes = torch.zeros(records.num_classes or 1, mode_bins, values, dtype=torch.float64)
    for images, one_hot in _poisson_sample(records, sample_rate, generator):
        pooled = F.avg_pool2d(images, pool_factor).flatten(1) / 255
        bins = (pooled * mode_bins).long().clamp(max=mode_bins - 1)
        for number in range(mode_bins):
            votes[:, number] += one_hot.T @ (bins == number).double()
    return votes


# Post-processing of what was released.


def _means(released: torch.Tensor) -> torch.Tensor:
    return (0.5 + released[:, :-1] / _counts(released)[:, None].clamp(min=1)).clamp(0, 1)


def _counts(released: torch.Tensor) -> torch.Tensor:
    """The noisy number of sampled records of each class, `(classes,)`."""
    return released[:, -1] / _count_weight(released.shape[1] - 1)


def _modes(released: torch.Tensor) -> torch.Tensor:
    return (released.argmax(dim=1) + 0.5) / released.shape[1]
