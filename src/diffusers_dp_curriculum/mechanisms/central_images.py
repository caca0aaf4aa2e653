"""Mechanism 1: central images, noisy aggregates of random samples of each class.

This is one of the three places that read sensitive records. "From Easy to Hard" (DP-FETA, S&P 2025, arXiv:2504.01395)
introduces mean and mode images; the queries here bound what zeroing out one record, or one user with all records,
changes: nothing is divided by a private count, and the sensitivity is fixed before any record is read.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F

from ..arithmetic import own_arithmetic
from ..checks import MODE_BINS, STATISTIC
from ..data.dataset_info import DatasetInfo
from ..data.image_dataset import ImageDataset, to_image_dataset
from ..errors import InputError
from ..pictures import enlarge
from ..privacy.accounting import Mechanism
from ..privacy.ledger import PrivacyLedger
from .class_sums import class_sums
from .randomness import MechanismRandomness
from .releases import Release, ReleasedImages


if TYPE_CHECKING:
    import datasets


VALUES_AT_ONCE = 2**22  # pixels of sampled records that are in memory in float64 at a time


class CentralImageDataset(ReleasedImages):
    """Central images as a `torch.utils.data.Dataset` of (image, label).

    The images have been released through a mechanism in the ledger, so that any use of them is post-processing.

    Args:
        images (`torch.Tensor`): `(M, channels, height, width)` float32 in [0, 1].
        labels (`torch.Tensor`): `(M,)` int64; all zero where there are no classes.
        mechanism (`Mechanism`): The ledger entry that paid for the images.
        class_names (`list[str]`, *optional*): The name of each class; None for an unconditional data set.
        class_counts (`list[float]`, *optional*):
            Approximate number of records of each class, from the noisy counts that mean queries release; None for mode
            images. With users it is the number of users, where one with records in several classes is divided among
            them.

    Examples:
        >>> import torch
        >>> from diffusers_dp_curriculum import CentralImageDataset, ImageDataset, PrivacyLedger
        >>> images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8)
        >>> labels = torch.arange(60) % 2
        >>> dataset = ImageDataset(images, labels, class_names=["healthy", "ill"])

        >>> ledger = PrivacyLedger(delta=1e-5, target_epsilon=10.0)
        >>> central = CentralImageDataset.from_dataset(dataset, images_per_class=3, noise_multiplier=5.0, ledger=ledger)
        >>> central.images.shape
        torch.Size([6, 1, 8, 8])
        >>> [(mechanism.name, mechanism.steps) for mechanism in ledger.mechanisms]
        [('central_images_mean', 3)]
    """

    name = "central_images"

    @classmethod
    def from_dataset(
        cls,
        dataset: "datasets.Dataset | ImageDataset",
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
        """Query `images_per_class` central images of every class, as [`CentralImageQueries`] describes.

        Args:
            dataset (`datasets.Dataset` or `ImageDataset`): The sensitive records.
            images_per_class (`int`, *optional*, defaults to 5): Number of queries.
            statistic (`str`, *optional*, defaults to `"mean"`): `"mean"` or `"mode"`.
            noise_multiplier (`float`, *optional*, defaults to 5.0):
                Standard deviation of the noise over the sensitivity, for each query.
            sample_rate (`float`, *optional*, defaults to 0.1):
                Probability in (0, 1] of each record or user, in each query.
            ledger (`PrivacyLedger`): The ledger, which records each query before it is made.
            resolution (`int`, *optional*):
                Height and width in pixels to which images are resized; by default all images must be squares of one
                size.
            pool_factor (`int`, *optional*, defaults to 1):
                Area-pool images by this factor first; fewer values are less noisy. Divides the resolution.
            mode_bins (`int`, *optional*, defaults to 8): Bins of the histogram over [0, 1], at least 2.
            randomness (`MechanismRandomness`, *optional*): The source of sampling and noise.

        Raises:
            InputError:
                If a value is out of range, the queries would pass the ledger's target, or the ledger counts another
                unit of privacy. Nothing has been read or recorded in that case.
        """
        queries = CentralImageQueries(
            images_per_class, statistic, noise_multiplier, sample_rate, pool_factor, mode_bins
        )
        records = to_image_dataset(dataset, resolution=resolution)
        return queries.release(records, ledger, randomness or MechanismRandomness())


@dataclass(frozen=True)
class CentralImageQueries:
    """The central-image queries of a run, described once for both the plan and the release.

    Each query includes every record independently with probability `sample_rate` and releases one image of each class
    (the classes are disjoint, so they share one sensitivity). With users, it includes every user with that probability,
    who adds the mean of what its records would add. Within a query:

    - *mean*: a record (x, c) adds (pool(x) - 1/2, beta) to the sum and the count of class c. With d values per
      image the sensitivity is sqrt(d / 4 + beta^2); the image is 1/2 + noisy sum / noisy count.
    - *mode*: a record adds one vote at each of its d values to a histogram of `mode_bins` bins; the sensitivity is
      sqrt(d); the image is the centre of the fullest bin.

    Args:
        images_per_class (`int`, *optional*, defaults to 5): Number of queries.
        statistic (`str`, *optional*, defaults to `"mean"`): `"mean"` or `"mode"`.
        noise_multiplier (`float`, *optional*, defaults to 5.0):
            Standard deviation of the noise over the sensitivity, for each query.
        sample_rate (`float`, *optional*, defaults to 0.1):
            Probability in (0, 1] of each record or user, in each query.
        pool_factor (`int`, *optional*, defaults to 1):
            Area-pool images by this factor first; fewer values are less noisy. Divides the resolution.
        mode_bins (`int`, *optional*, defaults to 8): Bins of the histogram over [0, 1], at least 2.

    Raises:
        InputError: If a value is out of range.
    """

    release_type: ClassVar[type[Release]] = CentralImageDataset
    images_per_class: int = 5
    statistic: str = "mean"
    noise_multiplier: float = 5.0
    sample_rate: float = 0.1
    pool_factor: int = 1
    mode_bins: int = 8

    def __post_init__(self) -> None:
        STATISTIC.check("statistic", self.statistic)
        MODE_BINS.check("mode_bins", self.mode_bins)

    def mechanism(self, info: DatasetInfo) -> Mechanism:
        """The ledger entry of all queries, made from public values only: a plan needs it before any record is read.

        Args:
            info (`DatasetInfo`): The public description of the data set.

        Raises:
            InputError: If `pool_factor` does not divide height and width.
        """
        channels, height, width = info.image_shape
        if self.pool_factor < 1 or height % self.pool_factor or width % self.pool_factor:
            raise InputError(
                f"Images of {height}x{width} cannot be pooled by {self.pool_factor}: choose a factor that divides both."
            )
        values = channels * (height // self.pool_factor) * (width // self.pool_factor)
        sensitivity = (values / 4 + _count_weight(values) ** 2) ** 0.5 if self.statistic == "mean" else values**0.5
        return Mechanism(
            f"central_images_{self.statistic}",
            self.noise_multiplier,
            self.sample_rate,
            self.images_per_class,
            sensitivity,
        )

    @own_arithmetic()
    def noisy_sums(self, records: ImageDataset, ledger: PrivacyLedger, randomness: MechanismRandomness) -> torch.Tensor:
        """Make the queries: everything that reads records, and nothing else.

        Args:
            records (`ImageDataset`): The sensitive records.
            ledger (`PrivacyLedger`): The ledger, which records each query before it is made.
            randomness (`MechanismRandomness`): The source of sampling and noise.

        Returns:
            `torch.Tensor`: The noisy sums of each query in float64, `(queries, classes, values + 1)` with the count
            last, or for the mode `(queries, classes, mode_bins, values)`.

        Raises:
            InputError: As [`release`] does.
        """
        mechanism = self.mechanism(records.info)
        execution = ledger.begin(mechanism, randomness, records.units.name)
        sampling, noise = randomness.generator(), randomness.generator()

        def add_noise(sums: torch.Tensor) -> torch.Tensor:
            return sums + mechanism.noise_multiplier * mechanism.sensitivity * randomness.normal(sums.shape, noise)

        queries = []
        for _ in range(self.images_per_class):
            with execution.step():
                if self.statistic == "mean":
                    released = add_noise(_mean_sums(records, self.sample_rate, self.pool_factor, sampling))
                else:
                    released = add_noise(
                        _mode_votes(records, self.sample_rate, self.pool_factor, self.mode_bins, sampling)
                    )
            queries.append(released)
        return torch.stack(queries)

    @own_arithmetic()  # for the post-processing as well: nothing may fail after records have been read
    def release(
        self, records: ImageDataset, ledger: PrivacyLedger, randomness: MechanismRandomness
    ) -> CentralImageDataset:
        """Make the queries and release their images.

        Args:
            records (`ImageDataset`): The sensitive records.
            ledger (`PrivacyLedger`): The ledger, which records each query before it is made.
            randomness (`MechanismRandomness`): The source of sampling and noise.

        Raises:
            InputError:
                If `pool_factor` does not divide the resolution, the queries would pass the ledger's target, or the
                ledger counts another unit of privacy. Nothing has been read or recorded in that case.
        """
        info = records.info
        released = self.noisy_sums(records, ledger, randomness)
        is_mean = self.statistic == "mean"
        pooled = torch.cat([_means(query) if is_mean else _modes(query) for query in released])
        channels, height, width = info.image_shape
        images = pooled.float().view(-1, channels, height // self.pool_factor, width // self.pool_factor)
        images = enlarge(images, height)
        labels = torch.arange(info.num_labels).repeat(self.images_per_class)
        counts = torch.stack([_counts(query) for query in released]).mean(0) / self.sample_rate if is_mean else None
        class_counts = None if counts is None else counts.clamp(min=0).tolist()
        return CentralImageDataset(images, labels, self.mechanism(info), records.class_names, class_counts)


def _count_weight(values: int) -> float:
    """What a record adds to its class count, beta.

    A larger beta measures the count better and the pixels worse. With Delta^2 = d/4 + beta^2 the variance of a pixel
    of mean 1/2 + m is proportional to Delta^2 (1 + m^2 / beta^2); beta^2 = sqrt(d) / 4 minimises it at the worst m,
    |m| = 1/2.
    """
    return values**0.25 / 2


# The functions that read records: sums over a Poisson sample. One record changes the sum of its own class only.
# `Execution.step` fixes the arithmetic of all of them.


def _poisson_sample(records: ImageDataset, sample_rate: float, generator: torch.Generator) -> torch.Tensor:
    """The numbers of the units of privacy that take part, int64."""
    return (torch.rand(len(records.units), generator=generator, dtype=torch.float64) < sample_rate).nonzero()[:, 0]


def _mean_sums(records: ImageDataset, sample_rate: float, pool_factor: int, generator: torch.Generator) -> torch.Tensor:
    """The sum of (pool(x) - 1/2, beta) over the sampled units of each class, `(classes, values + 1)`."""
    classes, image_shape = records.info.num_labels, records.images.shape[1:]
    sampled = _poisson_sample(records, sample_rate, generator)
    width = image_shape.numel()
    # Centred before anything is truncated, since that must not make it larger: 2 v - 255 is 510 (v / 255 - 1/2).
    sums, counts = class_sums(
        records, sampled, lambda images: 2 * images.flatten(1).double() - 255, width, VALUES_AT_ONCE
    )
    pixels = (sums + 255 * counts) / 2
    # Pooling, scaling and centring are linear: done to the sum, they are done to every record in it.
    pooled = F.avg_pool2d(pixels.view(classes, *image_shape), pool_factor).flatten(1) / 255 - counts / 2
    return torch.cat([pooled, _count_weight(pooled.shape[1]) * counts], dim=1)


def _mode_votes(
    records: ImageDataset, sample_rate: float, pool_factor: int, mode_bins: int, generator: torch.Generator
) -> torch.Tensor:
    """The number of votes for each class, bin and value, `(classes, mode_bins, values)`."""
    channels, height, width = records.images.shape[1:]
    values = channels * (height // pool_factor) * (width // pool_factor)

    def votes_of(images: torch.Tensor) -> torch.Tensor:
        pooled = F.avg_pool2d(images.double(), pool_factor).flatten(1) / 255
        bins = (pooled * mode_bins).long().clamp(max=mode_bins - 1)
        return F.one_hot(bins, mode_bins).transpose(1, 2).flatten(1).double()

    sampled = _poisson_sample(records, sample_rate, generator)
    votes, _ = class_sums(records, sampled, votes_of, mode_bins * values, VALUES_AT_ONCE)
    return votes.unflatten(1, (mode_bins, values))


# Post-processing of what was released.


def _means(released: torch.Tensor) -> torch.Tensor:
    return (0.5 + released[:, :-1] / _counts(released)[:, None].clamp(min=1)).clamp(0, 1)


def _counts(released: torch.Tensor) -> torch.Tensor:
    """The noisy number of sampled records of each class, `(classes,)`."""
    return released[:, -1] / _count_weight(released.shape[1] - 1)


def _modes(released: torch.Tensor) -> torch.Tensor:
    return (released.argmax(dim=1) + 0.5) / released.shape[1]
