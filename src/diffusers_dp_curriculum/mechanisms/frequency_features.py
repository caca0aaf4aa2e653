"""Random Fourier features for the query of `class_features.py`.

"From Easy to Hard++" (FETA-Pro, USENIX Security 2026, arXiv:2601.06368) puts this query between central images and
DP-SGD; the query itself is that of DP-MERF (Harder et al., AISTATS 2021, arXiv:2002.11603). The features of every image
have an L2 norm of 1 by construction, and the frequencies are drawn from a public seed before any record is read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ..checks import KERNEL_WIDTH, NUM_FREQUENCY_FEATURES
from ..data.dataset_info import DatasetInfo
from ..data.image_dataset import to_image_dataset
from ..privacy.accounting import Mechanism
from ..privacy.ledger import PrivacyLedger
from .class_features import ClassFeatureQuery, ClassFeatures, FeatureMap, pooled_shape
from .public_eyes import PublicEyes
from .randomness import MechanismRandomness
from .releases import Release


if TYPE_CHECKING:
    import datasets

    from ..data.image_dataset import ImageDataset


RELATIVE_KERNEL_WIDTHS = (0.125, 0.25)  # per square root of the number of values


class FrequencyFeatures(ClassFeatures):
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
        super().__init__(image_shape, sums, counts, mechanism, class_names)
        self.frequencies = frequencies

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

    def feature_map(self, device: torch.device, eyes: PublicEyes | None = None) -> FeatureMap:
        """A differentiable function that makes these features of images.

        Args:
            device (`torch.device`): Where the images will be.
            eyes (`PublicEyes`, *optional*): Not used, as these features need no model.
        """
        frequencies = self.frequencies.to(device)
        return lambda images: fourier_features(images, frequencies)


@dataclass(frozen=True)
class FrequencyFeatureQuery(ClassFeatureQuery[FrequencyFeatures]):
    """The query of random Fourier features of all records.

    The frequencies, the rows of W, are drawn from normal distributions with standard deviation 1 / w, equally many for
    each kernel width w.

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
    eyes = None
    num_features: int = 3000
    noise_multiplier: float = 10.0
    kernel_widths: Sequence[float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        NUM_FREQUENCY_FEATURES.check("num_features", self.num_features)
        if self.kernel_widths is not None:
            KERNEL_WIDTH.check_each("kernel_widths", self.kernel_widths)

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

    def features_of(self, image_shape: tuple[int, int, int]) -> FeatureMap:
        """The features of records in float64; arguments as in [`ClassFeatureQuery`]."""
        frequencies = self.frequencies(image_shape).double()
        return lambda images: fourier_features(images, frequencies)

    def released(
        self,
        info: DatasetInfo,
        sums: torch.Tensor,
        counts: torch.Tensor,
        class_names: list[str] | None = None,
    ) -> FrequencyFeatures:
        """Put together what the query releases; arguments as in [`ClassFeatureQuery`]."""
        shape = pooled_shape(info.image_shape)
        return FrequencyFeatures(self.frequencies(shape), shape, sums, counts, self.mechanism(info), class_names)


def fourier_features(images: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """The random Fourier features z(x) of images, `(B, D)`; the squares of a row add up to 1.

    Args:
        images (`torch.Tensor`): `(B, channels, height, width)` pixels in [0, 1], pooled.
        frequencies (`torch.Tensor`): W, `(D/2, values)`, of the same type as the images.
    """
    phases = images.flatten(1) @ frequencies.T
    return torch.cat([phases.cos(), phases.sin()], dim=1) / len(frequencies) ** 0.5
