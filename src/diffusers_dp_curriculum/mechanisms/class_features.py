"""One noisy sum of features over all records of each class: the query that all kinds of features share.

This is one of the three places that read sensitive records. It takes features of an L2 norm of at most 1, whatever the
image is: random Fourier features (`frequency_features.py`), or those of a public vision model
(`perceptual_features.py`). Nothing is divided by a private count, and what makes features of an image is public and
fixed before any record is read.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..arithmetic import own_arithmetic
from ..data.dataset_info import DatasetInfo
from ..data.image_dataset import ImageDataset
from ..privacy.accounting import Mechanism
from ..privacy.ledger import PrivacyLedger
from .class_sums import class_sums
from .public_eyes import PublicEyes
from .randomness import MechanismRandomness
from .releases import Release


MAX_RESOLUTION = 32  # larger images are pooled first: their finest details are lost in the noise anyway
COUNT_WEIGHT = 0.3125  # what a record adds to its class count, beta
# Features are truncated to multiples of this power of two, so that float64 sums of up to 2^25 records are exact.
QUANTUM = 2.0**-28
VALUES_AT_ONCE = 2**21  # features, or pixels, that are in memory in float64 at a time
# A progress bar without the number of records, which is not public where users are the unit of privacy.
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
SECONDS_WITHOUT_BAR = 5

FeatureMap = Callable[[torch.Tensor], torch.Tensor]
Features = TypeVar("Features", bound="ClassFeatures", covariant=True)


class ClassFeatures(Release):
    """Noisy sums of features over the records of each class.

    The sums have been released through a mechanism in the ledger, so that any use of them is post-processing.

    Args:
        image_shape (`tuple[int, int, int]`): Channels, height and width of the pooled images, at most 32 pixels.
        sums (`torch.Tensor`): `(classes, D)` float64, for each class the noisy sum of its records' features.
        counts (`torch.Tensor`):
            `(classes,)` float64, the noisy number of records of each class. With users it is the number of users, where
            one with records in several classes is divided among them.
        mechanism (`Mechanism`): The ledger entry that paid for the sums.
        class_names (`list[str]`, *optional*): The name of each class; None for an unconditional data set.
    """

    mechanism: Mechanism

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        sums: torch.Tensor,
        counts: torch.Tensor,
        mechanism: Mechanism,
        class_names: list[str] | None = None,
    ):
        channels, height, width = image_shape  # a list, if it comes from a file
        self.image_shape = channels, height, width
        self.sums = sums
        self.counts = counts
        self.mechanism = mechanism
        self.class_names = class_names

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

    @abstractmethod
    def feature_map(self, device: torch.device, eyes: PublicEyes | None = None) -> FeatureMap:
        """A differentiable function that makes these features of images, in float32.

        Args:
            device (`torch.device`): Where the images will be.
            eyes (`PublicEyes`, *optional*): The public model, if the features are those of one.

        Returns:
            `Callable`: Maps pooled images in [0, 1], `(B, channels, height, width)`, to features, `(B, D)`.

        Raises:
            InputError: If the features are those of another model.
        """


class ClassFeatureQuery(ABC, Generic[Features]):
    """The query of features of a run, described once for both the plan and the release.

    The query takes all records. A record (x, c) adds the vector (z(x), beta) to the sum and the count of class c, where
    z(x) has an L2 norm of at most 1, so that the sensitivity is sqrt(1 + beta^2). A user adds the mean of what its
    records would add, which is not longer. Images of more than 32 pixels are pooled to 32 first.

    Attributes:
        release_type (`type[ClassFeatures]`): The class of what the query releases.
        eyes (`PublicEyes`, *optional*): The public model that makes the features; None if there is none.
        noise_multiplier (`float`): Standard deviation of the noise over the sensitivity.
    """

    release_type: ClassVar[type[Release]]
    eyes: PublicEyes | None
    noise_multiplier: float

    @property
    @abstractmethod
    def num_features(self) -> int:
        """`int`: D, the number of features."""

    @abstractmethod
    def features_of(self, image_shape: tuple[int, int, int]) -> FeatureMap:
        """The function that makes the features of records, of which each follows from one image alone.

        Args:
            image_shape (`tuple[int, int, int]`): Channels, height and width of the pooled images.

        Returns:
            `Callable`:
                Maps pooled images in [0, 1] in float64, `(n, channels, height, width)`, to features in float64 of norm
                at most 1, `(n, D)`.
        """

    @abstractmethod
    def released(
        self,
        info: DatasetInfo,
        sums: torch.Tensor,
        counts: torch.Tensor,
        class_names: list[str] | None = None,
    ) -> Features:
        """Put together what the query releases.

        Args:
            info (`DatasetInfo`): The public description of the data set.
            sums (`torch.Tensor`): The noisy sums, `(classes, D)`.
            counts (`torch.Tensor`): The noisy counts, `(classes,)`.
            class_names (`list[str]`, *optional*): The name of each class.
        """

    def mechanism(self, info: DatasetInfo) -> Mechanism:
        """The ledger entry of the query, made from public values only: a plan needs it before any record is read.

        Args:
            info (`DatasetInfo`): The public description of the data set.
        """
        return Mechanism(self.release_type.name, self.noise_multiplier, 1.0, 1, math.sqrt(1 + COUNT_WEIGHT**2))

    def without_records(self, info: DatasetInfo) -> Features:
        """What the query would release of no records and without noise, for a rehearsal.

        Args:
            info (`DatasetInfo`): The public description of the data set.
        """
        sums = torch.zeros(info.num_labels, self.num_features, dtype=torch.float64)
        return self.released(info, sums, sums[:, 0])

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
        features_of = self.features_of(pooled_shape(records.info.image_shape))
        mechanism = self.mechanism(records.info)
        execution = ledger.begin(mechanism, randomness, records.units.name)
        noise = randomness.generator()
        with execution.step():
            sums = _feature_sums(records, features_of, self.num_features)
            released = sums + mechanism.noise_multiplier * mechanism.sensitivity * randomness.normal(sums.shape, noise)
        return released[None]

    @own_arithmetic()
    def release(self, records: ImageDataset, ledger: PrivacyLedger, randomness: MechanismRandomness) -> Features:
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
        (noisy,) = self.noisy_sums(records, ledger, randomness)
        return self.released(records.info, noisy[:, :-1], noisy[:, -1] / COUNT_WEIGHT, records.class_names)


def pooled_shape(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Channels, height and width of images after the pooling that comes before their features.

    Args:
        image_shape (`tuple[int, int, int]`): Channels, height and width of the images.
    """
    channels, height, width = image_shape
    return channels, min(height, MAX_RESOLUTION), min(width, MAX_RESOLUTION)


# The function that reads records. One record changes the sums of its own class only. `Execution.step` fixes its
# arithmetic.


def _feature_sums(records: ImageDataset, features_of: FeatureMap, num_features: int) -> torch.Tensor:
    """The sum of (z(x), beta) over all units of each class, `(classes, D + 1)`.

    A record's features are computed from its pixels alone. They are truncated towards zero to multiples of `QUANTUM`,
    and so are the means over the records of a user. This makes no norm larger, and float64 adds up the results exactly:
    zeroing out one unit changes the sums by its own features and by nothing else.
    """
    size = pooled_shape(records.info.image_shape)[1:]
    title = "Features of the records"
    with tqdm(total=len(records), desc=title, bar_format=BAR, delay=SECONDS_WITHOUT_BAR, leave=False) as progress:

        def quanta_of(images: torch.Tensor) -> torch.Tensor:
            pooled = F.adaptive_avg_pool2d(images.double() / 255, size)
            quanta = (features_of(pooled) / QUANTUM).trunc()
            progress.update(len(images))
            return quanta

        everybody = torch.arange(len(records.units))
        sums, counts = class_sums(records, everybody, quanta_of, num_features, VALUES_AT_ONCE, quantum=1.0)
    return torch.cat([QUANTUM * sums, COUNT_WEIGHT * counts], dim=1)
