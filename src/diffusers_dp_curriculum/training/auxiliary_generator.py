"""The auxiliary generator: a small network fitted to released features of classes. It reads no records.

The class means of random Fourier features characterise the distribution of a class as far as their kernels resolve it.
The generator learns to make images whose features have the released means, by stochastic gradient descent on the
squared distance of the means (the maximum mean discrepancy of their kernels: Gretton et al., JMLR 2012). The method is
that of DP-MERF (Harder et al., AISTATS 2021, arXiv:2002.11603) and FETA-Pro (USENIX Security 2026, arXiv:2601.06368);
with the features of a public model it is that of DP-MEPF (Harder et al., TMLR 2023, arXiv:2205.12900).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from ..arithmetic import own_arithmetic
from ..errors import TrainingError
from ..gradients.trials import seed_from, seeded
from ..mechanisms.class_features import ClassFeatures
from ..mechanisms.public_eyes import PublicEyes
from ..mechanisms.releases import ReleasedImages


GENERATOR = "auxiliary_generator"  # the name of the stage
TITLE = "Generator of frequency images"
BATCH_SIZE = 200  # images per step, over all classes
FEWEST_PER_CLASS = 4  # with more classes than fit into a batch, each step takes some of them at random
LEARNING_RATE = 1e-2
LATENT_SIZE = 32
CHANNELS = 64  # of the coarsest level
NUM_IMAGES = 10_000


class AuxiliaryGenerator(nn.Module):
    """A small convolutional network that makes an image from random numbers and a class.

    A linear layer makes planes of a quarter of the resolution. Convolutions at half the resolution make most of the
    image, and a last one at full resolution of a few planes smooths it: on a CPU, convolutions at full resolution would
    take most of the time. Batch normalisation mixes the generator's own images alone.

    Args:
        image_shape (`tuple[int, int, int]`): Channels, height and width of the images.
        num_labels (`int`): Number of classes, or 1 without classes.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_labels: int):
        super().__init__()
        channels, self.height, self.width = image_shape
        self.num_labels = num_labels
        self.rows, self.columns = math.ceil(self.height / 4), math.ceil(self.width / 4)
        planes = 8 * channels
        self.first = nn.Linear(LATENT_SIZE + num_labels, CHANNELS * self.rows * self.columns)
        self.body = nn.Sequential(
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(CHANNELS, CHANNELS // 2, 3, padding=1),
            nn.BatchNorm2d(CHANNELS // 2),
            nn.ReLU(),
            nn.Conv2d(CHANNELS // 2, 4 * planes, 3, padding=1),
            nn.PixelShuffle(2),
            nn.BatchNorm2d(planes),
            nn.ReLU(),
            nn.Conv2d(planes, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Make images.

        Args:
            latents (`torch.Tensor`): `(B, LATENT_SIZE)` standard normal numbers.
            labels (`torch.Tensor`): `(B,)` int64.

        Returns:
            `torch.Tensor`: `(B, channels, height, width)` in [0, 1].
        """
        one_hot = F.one_hot(labels, self.num_labels).to(latents.dtype)
        coarse = self.first(torch.cat([latents, one_hot], dim=1)).unflatten(1, (-1, self.rows, self.columns))
        return self.body(coarse)[..., : self.height, : self.width]


class FrequencyImageDataset(ReleasedImages):
    """Images of a generator that was fitted to released features of classes, as a data set of (image, label).

    Any use of the images is post-processing of the query that released the features.

    Args:
        images (`torch.Tensor`): `(M, channels, height, width)` float32 in [0, 1], with at most 32 pixels on a side.
        labels (`torch.Tensor`): `(M,)` int64; all zero where there are no classes.
        mechanism (`Mechanism`): The ledger entry that paid for the features.
        class_names (`list[str]`, *optional*): The name of each class; None for an unconditional data set.
        class_counts (`list[float]`, *optional*): Approximate number of records of each class, from the noisy counts.

    Examples:
        >>> from diffusers_dp_curriculum import FrequencyFeatures, FrequencyImageDataset, PrivacyLedger
        >>> from diffusers_dp_curriculum import load_image_dataset
        >>> dataset = load_image_dataset(dataset_name="digits")
        >>> ledger = PrivacyLedger(delta=1e-5, target_epsilon=10.0)
        >>> features = FrequencyFeatures.from_dataset(dataset, num_features=400, noise_multiplier=2.0, ledger=ledger)
        >>> images = FrequencyImageDataset.from_features(features, train_steps=2)
        >>> images.images.shape
        torch.Size([10100, 1, 8, 8])
    """

    name = "frequency_images"

    @classmethod
    @own_arithmetic()
    def from_features(
        cls,
        features: ClassFeatures,
        train_steps: int = 1600,
        seed: int = 0,
        device: torch.device | str = "cpu",
        eyes: PublicEyes | None = None,
    ) -> "FrequencyImageDataset":
        """Fit a generator to released features, and make some 10,000 images, as [`generate_images`] describes.

        Args:
            features (`FrequencyFeatures` or `PerceptualFeatures`): What the query released.
            train_steps (`int`, *optional*, defaults to 1600): Steps of fitting, which cost no privacy.
            seed (`int`, *optional*, defaults to 0): Seed of the generator's weights and latent vectors.
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where the generator is trained.
            eyes (`PublicEyes`, *optional*): The public model, if the features are those of one.

        Raises:
            InputError: If the features are those of another model.
        """
        with seeded(torch.device(device), seed), tqdm(total=train_steps, desc=TITLE) as progress:
            state = start_generator(features.image_shape, len(features.counts), train_steps, seed, device)
            fit_generator(state, features, train_steps, seed, lambda _: progress.update() and False, eyes)
            return generate_images(state, features, seed)


@dataclass
class GeneratorState:
    """Everything that a step of fitting a generator changes, and the network of the run, which a checkpoint keeps.

    Args:
        generator (`AuxiliaryGenerator`): The generator.
        optimizer (`torch.optim.Optimizer`): Its optimizer.
        lr_scheduler (`torch.optim.lr_scheduler.LRScheduler`): Its learning-rate schedule.
        unet (`torch.nn.Module`, *optional*): The network of the run; None outside of a run.
        step (`int`): The number of steps taken.
        stage (`str`): The name of the stage.
    """

    generator: AuxiliaryGenerator
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    unet: torch.nn.Module | None = None
    step: int = 0
    stage: str = GENERATOR

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values, without the name of the stage."""
        return {name: part.state_dict() for name, part in self._parts().items()} | {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what [`state_dict`] returned, on whatever device the networks are now."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]

    def _parts(self) -> dict[str, Any]:
        parts = {"generator": self.generator, "optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler}
        return parts if self.unet is None else parts | {"unet": self.unet}


def start_generator(
    image_shape: tuple[int, int, int],
    num_labels: int,
    train_steps: int,
    seed: int,
    device: torch.device | str = "cpu",
    unet: torch.nn.Module | None = None,
) -> GeneratorState:
    """Create the state of a generator before its first step.

    Args:
        image_shape (`tuple[int, int, int]`): Channels, height and width of the images.
        num_labels (`int`): Number of classes, or 1 without classes.
        train_steps (`int`): Number of steps of fitting.
        seed (`int`): Seed of the generator's weights.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where the generator is trained.
        unet (`torch.nn.Module`, *optional*): The network of the run, which checkpoints have to keep.
    """
    seed_from(seed, 0)
    generator = AuxiliaryGenerator(image_shape, num_labels).to(device)
    optimizer = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, train_steps)
    return GeneratorState(generator, optimizer, schedule, unet)


def fit_generator(
    state: GeneratorState,
    features: ClassFeatures,
    train_steps: int,
    seed: int,
    after_step: Callable[[torch.Tensor], object] = lambda error: None,
    eyes: PublicEyes | None = None,
) -> bool:
    """Fit the generator to the released features.

    Every process fits the same generator, from seeds that depend on the step.

    Args:
        state (`GeneratorState`): From [`start_generator`] or a checkpoint; its generator is trained in place.
        features (`ClassFeatures`): What the query released.
        train_steps (`int`): Number of steps of fitting.
        seed (`int`): Seed of the latent vectors.
        after_step (`Callable`, *optional*):
            Called after each step with the loss; fitting stops if it returns a true value.
        eyes (`PublicEyes`, *optional*): The public model, if the features are those of one.

    Returns:
        `bool`: Whether all steps were taken.

    Raises:
        InputError: If the features are those of another model.
        TrainingError: If the generator diverges.
    """
    generator = state.generator
    device = next(generator.parameters()).device
    target, features_of = features.means().to(device), features.feature_map(device, eyes)
    weights = features.reliability().to(device)
    weights = weights / weights.sum()
    classes_at_once = min(len(target), BATCH_SIZE // FEWEST_PER_CLASS)
    per_class = BATCH_SIZE // classes_at_once
    while state.step < train_steps:
        generator.train()
        seed_from(seed, state.step + 1)
        classes = torch.randperm(len(target))[:classes_at_once].to(device)
        latents = torch.randn(classes_at_once * per_class, LATENT_SIZE).to(device)
        images = generator(latents, classes.repeat_interleave(per_class))
        made = features_of(images).unflatten(0, (classes_at_once, per_class))
        error = (weights[classes] * mean_discrepancy(made, target[classes])).sum()
        if not error.isfinite():
            raise TrainingError(
                "The generator of frequency images diverged: leave `frequency_kernel_widths` out, or set "
                "`frequency_features` to 0."
            )
        state.optimizer.zero_grad()
        error.backward()
        state.optimizer.step()
        state.lr_scheduler.step()
        state.step += 1
        if after_step(error.detach()):
            return False
    return True


def mean_discrepancy(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """An unbiased estimate of the squared distance between a generator's mean features and given ones.

    The plain distance of a batch's mean would be larger by the variance of that mean, and a generator that minimises it
    makes images that are too much alike. Leaving out the product of each image's features with themselves removes this
    bias (Gretton et al., JMLR 2012, lemma 6).

    Args:
        features (`torch.Tensor`): `(classes, B, D)` features of generated images, B at least 2.
        target (`torch.Tensor`): `(classes, D)` mean features.

    Returns:
        `torch.Tensor`: The squared distance of each class, `(classes,)`; an estimate may be below 0.
    """
    size = features.shape[1]
    total = features.sum(dim=1)
    pairs = (total.square().sum(dim=1) - features.square().sum(dim=(1, 2))) / (size * (size - 1))
    return pairs - 2 * (total * target).sum(dim=1) / size + target.square().sum(dim=1)


@torch.no_grad()
def generate_images(
    state: GeneratorState, features: ClassFeatures, seed: int, num_images: int | None = None
) -> FrequencyImageDataset:
    """Make the images that the next stage trains on.

    There are ten images of every class, which a picture shows, and all others come in proportion to the noisy counts.

    Args:
        state (`GeneratorState`): The state at the end of the stage.
        features (`ClassFeatures`): What the query released.
        seed (`int`): Seed of the labels and of the latent vectors.
        num_images (`int`, *optional*): Number of images besides the ten of every class; by default `NUM_IMAGES`.
    """
    num_images = NUM_IMAGES if num_images is None else num_images
    generator = state.generator
    device = next(generator.parameters()).device
    seed_from(seed, state.step + 1)
    generator.eval()
    in_proportion = torch.multinomial(features.counts.clamp(min=1), max(num_images, 1), replacement=True)[:num_images]
    labels = torch.cat([torch.arange(len(features.counts)).repeat(10), in_proportion])
    labels = labels[torch.randperm(len(labels))]
    images = [
        generator(torch.randn(len(some), LATENT_SIZE).to(device), some.to(device)).cpu()
        for some in labels.split(BATCH_SIZE)
    ]
    return FrequencyImageDataset(
        torch.cat(images), labels, features.mechanism, features.class_names, features.counts.clamp(min=0).tolist()
    )
