"""Mechanism 2: frequency features, one noisy sum of random Fourier features over all records of each class.

This is one of the three places that read sensitive records. "From Easy to Hard++" (FETA-Pro, USENIX Security 2026,
arXiv:2601.06368) puts this query between central images and DP-SGD; the query itself is that of DP-MERF (Harder et al.,
AISTATS 2021, arXiv:2002.11603). The features of every image have an L2 norm of at most 1 by construction, nothing is
divided by a private count, and the frequencies are drawn from a public seed before any record is read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F

from ..arithmetic import own_arithmetic
from ..checks import KERNEL_WIDTH, NUM_FREQUENCY_FEATURES
from ..data.dataset_info import DatasetInfo
from ..data.image_dataset import ImageDataset, to_image_dataset
from ..privacy.accounting import Mechanism
from ..privacy.ledger import PrivacyLedger
from .class_sums import class_sums
from .randomness import MechanismRandomness
from .releases import Release


if TYPE_CHECKING:
    import datasets


MAX_RESOLUTION = 32  # larger images are pooled first: their finest details are lost in the noise anyway
RELATIVE_KERNEL_WIDTHS = (0.125, 0.25)  # per square root of the number of values
COUNT_WEIGHT = 0.3125  # what a record adds to its class count, beta
# Features are truncated to multiples of this power of two, so that float64 sums of up to 2^25 records are exact.
QUANTUM = 2.0**-28
VALUES_AT_ONCE = 2**21  # features, or pixels, that are in memory in float64 at a time


class FrequencyFeatures(Release):
    """Noisy sums of random Fourier features over the records of each class.

    The sums have been released through a mechanism in the ledger, so that any use of them is post-processing. The
    features of an image x are z(x) = (D/2)^(-1/2) [cos W x, sin W x], with one row of W for each frequency; the inner
    product of two images' features approximates a mean of Gaussian kernels (Rahimi and Recht, NIPS 2007).

    Args:
        frequencies (`torch.Tensor`): W, `(D/2, channels * height * width)` float32; public.
        image_shape (`tuple[int, int, int]`): Channels, height and width of the pooled images, at most 32 pixels.
        sums (`torch.Tensor`): `(classes, D)` float64, for each class the noisy sum of its records' features.
        counts (`torch.Tensor`):
            `(classes,)` float64, the noisy number of records of each class. With users it is the number of users, where
            one with records in several classes is divided among them.
        mechanism (`Mechanism`): The ledger entry that paid for the sums.
        class_names (`list[str]`, *optional*): The name of each class; None for an unconditional data set.

    Examples:
        >>> from diffusers_dp_curriculum import FrequencyFeatures, PrivacyLedger, load_image_dataset
        >>> dataset = load_image_dataset(dataset_name="digits")
        >>> ledger = PrivacyLedger(delta=1e-5, target_epsilon=10.0)
        >>> features = FrequencyFeatures.from_dataset(dataset, num_features=400, noise_multiplier=2.0, ledger=ledger)
        >>> features.sums.shape, features.image_shape
        (torch.Size([10, 400]), (1, 8, 8))
    """

    mechanism: Mechanism
    name = "frequency_features"
    tensors = ("frequencies", "sums", "counts")
    values = ("image_shape", "class_names")

    def __init__(
        self,
        frequencies: torch.Tensor,
        image_shape: tuple[int, int, int],
        sums: torch.Tensor,
        counts: torch.Tensor,
        mechanism: Mechanism,
        class_names: list[str] | None = None,
    ):
        self.frequencies = frequencies
        channels, height, width = image_shape  # a list, if it comes from a file
        self.image_shape = channels, height, width
        self.sums = sums
        self.counts = counts
        self.mechanism = mechanism
        self.class_names = class_names

    @classmethod
    def from_dataset(
        cls,
        dataset: "datasets.Dataset | ImageDataset",
        num_features: int = 3000,
        noise_multiplier: float = 10.0,
        kernel_widths: Sequence[float] | None = None,
        *,
        ledger: PrivacyLedger,
        seed: int = 0,
        resolution: int | None = None,
        randomness: MechanismRandomness | None = None,
    ) -> "FrequencyFeatures":
        """Make the query that [`FrequencyFeatureQuery`] describes.

        Args:
            dataset (`datasets.Dataset` or `ImageDataset`): The sensitive records.
            num_features (`int`, *optional*, defaults to 3000): D, an even number.
            noise_multiplier (`float`, *optional*, defaults to 10.0):
                Standard deviation of the noise over the sensitivity.
            kernel_widths (`Sequence[float]`, *optional*): See [`FrequencyFeatureQuery`].
            ledger (`PrivacyLedger`): The ledger, which records the query before it is made.
            seed (`int`, *optional*, defaults to 0): Seed of the frequencies, which are public.
            resolution (`int`, *optional*):
                Height and width in pixels to which images are resized; by default all images must be squares of one
                size.
            randomness (`MechanismRandomness`, *optional*): The source of the noise.

        Raises:
            InputError:
                If a value is out of range, the query would pass the ledger's target, or the ledger counts another unit
                of privacy. Nothing has been read or recorded in that case.
        """
        query = FrequencyFeatureQuery(num_features, noise_multiplier, kernel_widths, seed)
        records = to_image_dataset(dataset, resolution=resolution)
        return query.release(records, ledger, randomness or MechanismRandomness())

    def means(self) -> torch.Tensor:
        """The estimated mean features of each class, `(classes, D)` float32.

        A mean of vectors of norm 1 has a norm of at most 1; an estimate that has a larger one, of a class with few
        records, is scaled down.
        """
        means = self.sums / self.counts.clamp(min=1)[:, None]
        return (means / means.norm(dim=1, keepdim=True).clamp(min=1)).float()

    def reliability(self) -> torch.Tensor:
        """How much of each class's estimated means is not noise, `(classes,)` float32 from 0 to 1.

        The noise on the means of a class of n records has an expected squared norm of D (sigma Delta / n)^2, and the
        means without noise one of at most 1.
        """
        noise = self.mechanism.noise_multiplier * self.mechanism.sensitivity / self.counts.clamp(min=1)
        return (1 / (1 + self.sums.shape[1] * noise**2)).float()


@dataclass(frozen=True)
class FrequencyFeatureQuery:
    """The frequency query of a run, described once for both the plan and the release.

    The query takes all records. A record (x, c) adds the vector (z(x), beta) to the sum and the count of class c, where
    z(x) has an L2 norm of at most 1, so that the sensitivity is sqrt(1 + beta^2). A user adds the mean of what its
    records would add, which is not longer. The frequencies, the rows of W, are drawn from normal distributions with
    standard deviation 1 / w, equally many for each kernel width w. Images of more than 32 pixels are pooled to 32
    first.

    Args:
        num_features (`int`, *optional*, defaults to 3000): D, the number of features: an even number.
        noise_multiplier (`float`, *optional*, defaults to 10.0): Standard deviation of the noise over the sensitivity.
        kernel_widths (`Sequence[float]`, *optional*):
            Widths of the Gaussian kernels, as L2 distances between images with pixels in [0, 1]; by default
            `RELATIVE_KERNEL_WIDTHS` times the square root of the number of values of an image.
        seed (`int`, *optional*, defaults to 0): Seed of the frequencies, which are public.

    Raises:
        InputError: If a value is out of range.
    """

    release_type: ClassVar[type[Release]] = FrequencyFeatures
    num_features: int = 3000
    noise_multiplier: float = 10.0
    kernel_widths: Sequence[float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        NUM_FREQUENCY_FEATURES.check("num_features", self.num_features)
        if self.kernel_widths is not None:
            KERNEL_WIDTH.check_each("kernel_widths", self.kernel_widths)

    def mechanism(self, info: DatasetInfo) -> Mechanism:
        """The ledger entry of the query, made from public values only: a plan needs it before any record is read.

        Args:
            info (`DatasetInfo`): The public description of the data set.
        """
        return Mechanism("frequency_features", self.noise_multiplier, 1.0, 1, math.sqrt(1 + COUNT_WEIGHT**2))

    def frequencies(self, image_shape: tuple[int, int, int]) -> torch.Tensor:
        """Draw the frequencies W from the seed alone, `(num_features / 2, values)` float32.

        Args:
            image_shape (`tuple[int, int, int]`): Channels, height and width of the pooled images.
        """
        values = math.prod(image_shape)
        widths = torch.tensor(self.kernel_widths or [relative * values**0.5 for relative in RELATIVE_KERNEL_WIDTHS])
        generator = torch.Generator().manual_seed(self.seed)
        directions = torch.randn(self.num_features // 2, values, generator=generator)
        return directions / widths[torch.arange(len(directions)) % len(widths)][:, None]

    def without_records(self, info: DatasetInfo) -> FrequencyFeatures:
        """What the query would release of no records and without noise, for a rehearsal.

        Args:
            info (`DatasetInfo`): The public description of the data set.
        """
        image_shape = pooled_shape(info.image_shape)
        frequencies = self.frequencies(image_shape)
        sums = torch.zeros(info.num_labels, 2 * len(frequencies), dtype=torch.float64)
        return FrequencyFeatures(frequencies, image_shape, sums, sums[:, 0], self.mechanism(info))

    @own_arithmetic()
    def noisy_sums(self, records: ImageDataset, ledger: PrivacyLedger, randomness: MechanismRandomness) -> torch.Tensor:
        """Make the query: everything that reads records, and nothing else.

        Args:
            records (`ImageDataset`): The sensitive records.
            ledger (`PrivacyLedger`): The ledger, which records the query before it is made.
            randomness (`MechanismRandomness`): The source of the noise.

        Returns:
            `torch.Tensor`: The noisy sums of the one query in float64, `(1, classes, num_features + 1)`, with the count
            last.

        Raises:
            InputError: As [`release`] does.
        """
        frequencies = self.frequencies(pooled_shape(records.info.image_shape))
        mechanism = self.mechanism(records.info)
        execution = ledger.begin(mechanism, randomness, records.units.name)
        noise = randomness.generator()
        with execution.step():
            sums = _feature_sums(records, frequencies)
            released = sums + mechanism.noise_multiplier * mechanism.sensitivity * randomness.normal(sums.shape, noise)
        return released[None]

    @own_arithmetic()
    def release(
        self, records: ImageDataset, ledger: PrivacyLedger, randomness: MechanismRandomness
    ) -> FrequencyFeatures:
        """Make the query and release the noisy sums.

        Args:
            records (`ImageDataset`): The sensitive records.
            ledger (`PrivacyLedger`): The ledger, which records the query before it is made.
            randomness (`MechanismRandomness`): The source of the noise.

        Raises:
            InputError:
                If the query would pass the ledger's target, or the ledger counts another unit of privacy. Nothing has
                been read or recorded in that case.
        """
        info = records.info
        image_shape = pooled_shape(info.image_shape)
        (released,) = self.noisy_sums(records, ledger, randomness)
        return FrequencyFeatures(
            self.frequencies(image_shape),
            image_shape,
            released[:, :-1],
            released[:, -1] / COUNT_WEIGHT,
            self.mechanism(info),
            records.class_names,
        )


def pooled_shape(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Channels, height and width of images after the pooling that comes before their features.

    Args:
        image_shape (`tuple[int, int, int]`): Channels, height and width of the images.
    """
    channels, height, width = image_shape
    return channels, min(height, MAX_RESOLUTION), min(width, MAX_RESOLUTION)


def fourier_features(images: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """The random Fourier features z(x) of images, `(B, D)`; the squares of a row add up to 1.

    Args:
        images (`torch.Tensor`): `(B, channels, height, width)` pixels in [0, 1], pooled.
        frequencies (`torch.Tensor`): W, `(D/2, values)`, of the same type as the images.
    """
    phases = images.flatten(1) @ frequencies.T
    return torch.cat([phases.cos(), phases.sin()], dim=1) / len(frequencies) ** 0.5


# The function that reads records. One record changes the sums of its own class only. `Execution.step` fixes its
# arithmetic.


def _feature_sums(records: ImageDataset, frequencies: torch.Tensor) -> torch.Tensor:
    """The sum of (z(x), beta) over all units of each class, `(classes, D + 1)`.

    A record's features are computed from its pixels alone. They are truncated towards zero to multiples of `QUANTUM`,
    and so are the means over the records of a user. This makes no norm larger, and float64 adds up the results exactly:
    zeroing out one unit changes the sums by its own features and by nothing else.
    """
    frequencies = frequencies.double()

    def features_of(images: torch.Tensor) -> torch.Tensor:
        pooled = F.adaptive_avg_pool2d(images.double() / 255, pooled_shape(records.info.image_shape)[1:])
        return (fourier_features(pooled, frequencies) / QUANTUM).trunc()

    everybody = torch.arange(len(records.units))
    sums, counts = class_sums(records, everybody, features_of, 2 * len(frequencies), VALUES_AT_ONCE, quantum=1.0)
    return torch.cat([QUANTUM * sums, COUNT_WEIGHT * counts], dim=1)
