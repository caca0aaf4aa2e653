"""Features of a public vision model for the query of `class_features.py`, in the place of random frequencies.

The method is DP-MEPF (Harder et al., "Pre-trained Perceptual Features Improve Differentially Private Image
Generation", TMLR 2023, arXiv:2205.12900). The features of every image have an L2 norm of at most 1 by construction,
whatever the model computes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.utils.checkpoint import checkpoint

from ..data.dataset_info import DatasetInfo
from ..data.image_dataset import to_image_dataset
from ..errors import InputError
from ..privacy.accounting import Mechanism
from ..privacy.ledger import PrivacyLedger
from ..transfers import to_device
from .class_features import ClassFeatureQuery, ClassFeatures, FeatureMap, pooled_shape
from .public_eyes import BATCH_SIZE, PublicEyes, moments
from .randomness import MechanismRandomness
from .releases import Release


if TYPE_CHECKING:
    import datasets

    from ..data.image_dataset import ImageDataset


class PerceptualFeatures(ClassFeatures):
    """Noisy sums of the features that a public vision model has of the records of each class.

    The sums have been released through a mechanism in the ledger, so that any use of them is post-processing.

    Args:
        image_shape (`tuple[int, int, int]`): Channels, height and width of the pooled images, at most 32 pixels.
        sums (`torch.Tensor`): `(classes, D)` float64, for each class the noisy sum of its records' features.
        counts (`torch.Tensor`):
            `(classes,)` float64, the noisy number of records of each class. With users it is the number of users, where
            one with records in several classes is divided among them.
        mechanism (`Mechanism`): The ledger entry that paid for the sums.
        class_names (`list[str]`, *optional*): The name of each class; None for an unconditional data set.
        eyes_name (`str`): What is published of the model.
        eyes_fingerprint (`str`): The checksum of the model, which tells it from others.

    Examples:
        >>> from torch import nn
        >>> from diffusers_dp_curriculum import PerceptualFeatures, PrivacyLedger, PublicEyes, load_image_dataset
        >>> class Convolution(PublicEyes):
        ...     def __init__(self):
        ...         super().__init__("a convolution of somebody")
        ...         self.layer = nn.Conv2d(3, 8, 3)
        ...
        ...     def forward(self, images):
        ...         return [self.layer(images.expand(-1, 3, -1, -1)).relu()]
        >>> dataset = load_image_dataset(dataset_name="digits")
        >>> ledger = PrivacyLedger(delta=1e-5, target_epsilon=10.0)
        >>> features = PerceptualFeatures.from_dataset(dataset, Convolution(), noise_multiplier=2.0, ledger=ledger)
        >>> features.sums.shape
        torch.Size([10, 16])
    """

    name = "perceptual_features"
    tensors = ("sums", "counts")
    values = ("image_shape", "class_names", "eyes_name", "eyes_fingerprint")

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        sums: torch.Tensor,
        counts: torch.Tensor,
        mechanism: Mechanism,
        class_names: list[str] | None = None,
        *,
        eyes_name: str,
        eyes_fingerprint: str,
    ):
        super().__init__(image_shape, sums, counts, mechanism, class_names)
        self.eyes_name = eyes_name
        self.eyes_fingerprint = eyes_fingerprint

    @classmethod
    def from_dataset(
        cls,
        dataset: "datasets.Dataset | ImageDataset",
        eyes: PublicEyes,
        noise_multiplier: float = 10.0,
        *,
        ledger: PrivacyLedger,
        resolution: int | None = None,
        randomness: MechanismRandomness | None = None,
    ) -> "PerceptualFeatures":
        """Make the query that [`PerceptualFeatureQuery`] describes.

        Args:
            dataset (`datasets.Dataset` or `ImageDataset`): The sensitive records.
            eyes (`PublicEyes`): The public model.
            noise_multiplier (`float`, *optional*, defaults to 10.0):
                Standard deviation of the noise over the sensitivity.
            ledger (`PrivacyLedger`): The ledger, which records the query before it is made.
            resolution (`int`, *optional*):
                Height and width in pixels to which images are resized; by default all images must be squares of one
                size.
            randomness (`MechanismRandomness`, *optional*): The source of the noise.

        Raises:
            InputError:
                If the query would pass the ledger's target, the ledger counts another unit of privacy, or the model
                mixes images. Nothing has been read or recorded in that case.
        """
        records = to_image_dataset(dataset, resolution=resolution)
        return PerceptualFeatureQuery(eyes, noise_multiplier).release(
            records, ledger, randomness or MechanismRandomness()
        )

    def check_eyes(self, eyes: PublicEyes | None) -> PublicEyes:
        """The model through which these features were seen.

        Args:
            eyes (`PublicEyes`, *optional*): A model, which has to be that one.

        Raises:
            InputError: If it is another one, or there is none.
        """
        if eyes is None or eyes.fingerprint != self.eyes_fingerprint:
            raise InputError(
                f"The released features are those of {self.eyes_name} as it was at that time: give the same "
                "`feature_extractor`."
            )
        return eyes

    def feature_map(self, device: torch.device, eyes: PublicEyes | None = None) -> FeatureMap:
        """A differentiable function that makes these features of images.

        Between the passes it keeps the images alone, and looks a second time: what all layers of a large model make of
        a batch would not fit into memory.

        Args:
            device (`torch.device`): Where the images will be.
            eyes (`PublicEyes`, *optional*): The public model, which has to be the one of these features.

        Raises:
            InputError: If it is another one, or there is none.
        """
        model = self.check_eyes(eyes).to(device)

        def look(images: torch.Tensor) -> torch.Tensor:
            return moments(model.layers(images))

        def features_of(images: torch.Tensor) -> torch.Tensor:
            batches = images.split(BATCH_SIZE)
            looks = [checkpoint(look, batch, use_reentrant=False, preserve_rng_state=False) for batch in batches]
            return torch.cat(looks)

        return features_of


@dataclass(frozen=True)
class PerceptualFeatureQuery(ClassFeatureQuery[PerceptualFeatures]):
    """The query of the features that a public vision model has of all records.

    Args:
        eyes (`PublicEyes`): The public model.
        noise_multiplier (`float`, *optional*, defaults to 10.0): Standard deviation of the noise over the sensitivity.

    Raises:
        InputError: If the model mixes images.
    """

    release_type: ClassVar[type[Release]] = PerceptualFeatures
    eyes: PublicEyes
    noise_multiplier: float = 10.0

    def __post_init__(self) -> None:
        self.eyes.num_features  # noqa: B018 looks once, and refuses a model that mixes images

    @property
    def num_features(self) -> int:
        """`int`: D, which is the model's."""
        return self.eyes.num_features

    def features_of(self, image_shape: tuple[int, int, int]) -> FeatureMap:
        """The features of records, computed by the model in float32 and made to have norm 1 in float64.

        An image of which the model makes no finite numbers has features of zero.

        Args:
            image_shape (`tuple[int, int, int]`): Channels, height and width of the pooled images.
        """

        def look(images: torch.Tensor) -> torch.Tensor:
            layers = self.eyes.layers(to_device(images.float(), self.eyes.device))
            features = moments([layer.cpu().double() for layer in layers])
            return torch.where(features.isfinite().all(dim=1, keepdim=True), features, 0.0)

        @torch.no_grad()
        def features_of(images: torch.Tensor) -> torch.Tensor:
            return torch.cat([look(batch) for batch in images.split(BATCH_SIZE)])

        return features_of

    def released(
        self,
        info: DatasetInfo,
        sums: torch.Tensor,
        counts: torch.Tensor,
        class_names: list[str] | None = None,
    ) -> PerceptualFeatures:
        """Put together what the query releases; arguments as in [`ClassFeatureQuery`]."""
        return PerceptualFeatures(
            pooled_shape(info.image_shape),
            sums,
            counts,
            self.mechanism(info),
            class_names,
            eyes_name=self.eyes.name,
            eyes_fingerprint=self.eyes.fingerprint,
        )
