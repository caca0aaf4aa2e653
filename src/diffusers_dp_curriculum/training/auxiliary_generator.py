"""The auxiliary generator: a small network fitted to released frequency features. It reads no records.

The class means of random Fourier features characterise the distribution of a class as far as their kernels resolve it.
The generator learns to make images whose features have the released means, by stochastic gradient descent on the
squared distance of the means (the maximum mean discrepancy of their kernels: Gretton et al., JMLR 2012). The method is
that of DP-MERF (Harder et al., AISTATS 2021, arXiv:2002.11603) and FETA-Pro (USENIX Security 2026, arXiv:2601.06368).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..config import DPCurriculumConfig
from ..data.dataset_info import DatasetInfo
from ..mechanisms.frequency_features import (
    FrequencyFeatures,
    FrequencyImageDataset,
    fourier_features,
    pooled_shape,
)
from .checkpointing import TrainingState, make_ema
from .stages import GeneratorStage


BATCH_SIZE = 200  # images per step, over all classes
LEARNING_RATE = 5e-3
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


def start_generator(
    unet: torch.nn.Module, info: DatasetInfo, stage: GeneratorStage, config: DPCurriculumConfig
) -> TrainingState:
    """Create the training state of a generator stage before its first step.

    Args:
        unet (`torch.nn.Module`): The network of the run, which the stage does not change.
        info (`DatasetInfo`): The public description of the data set.
        stage (`GeneratorStage`): The stage.
        config (`DPCurriculumConfig`): `seed` and the fields of the average are used.
    """
    _seed(config.seed, 0)
    generator = AuxiliaryGenerator(pooled_shape(info.image_shape), info.num_labels)
    generator.to(next(unet.parameters()).device)
    optimizer = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, stage.train_steps)
    return TrainingState(stage.name, unet, optimizer, make_ema(generator, config), schedule, generator=generator)


def fit_generator(
    state: TrainingState,
    features: FrequencyFeatures,
    stage: GeneratorStage,
    config: DPCurriculumConfig,
    after_step: Callable[[torch.Tensor], object] = lambda error: None,
) -> bool:
    """Fit the generator to the released features.

    Every process fits the same generator, from seeds that depend on the step.

    Args:
        state (`TrainingState`): From [`start_generator`] or a checkpoint; its generator is trained in place.
        features (`FrequencyFeatures`): What the query released.
        stage (`GeneratorStage`): The number of steps.
        config (`DPCurriculumConfig`): `seed` is used.
        after_step (`Callable`, *optional*):
            Called after each step with the loss; fitting stops if it returns a true value.

    Returns:
        `bool`: Whether all steps were taken.
    """
    generator = state.generator
    assert generator is not None
    device = next(generator.parameters()).device
    target, frequencies = features.means().to(device), features.frequencies.to(device)
    weights = features.reliability().to(device)
    weights = weights / weights.sum()
    per_class = max(BATCH_SIZE // len(target), 4)
    labels = torch.arange(len(target), device=device).repeat_interleave(per_class)
    generator.train()
    while state.step < stage.train_steps:
        _seed(config.seed, state.step + 1)
        images = generator(torch.randn(len(labels), LATENT_SIZE).to(device), labels)
        made = fourier_features(images, frequencies).unflatten(0, (len(target), per_class))
        error = (weights * mean_discrepancy(made, target)).sum()
        state.optimizer.zero_grad()
        error.backward()
        state.optimizer.step()
        state.advance()
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
    state: TrainingState, features: FrequencyFeatures, config: DPCurriculumConfig
) -> FrequencyImageDataset:
    """Make the images that the next stage trains on, with classes in proportion to the noisy counts.

    Args:
        state (`TrainingState`): The state at the end of the stage.
        features (`FrequencyFeatures`): What the query released.
        config (`DPCurriculumConfig`): `seed` is used.
    """
    generator = state.generator
    assert generator is not None
    device = next(generator.parameters()).device
    _seed(config.seed, state.step + 1)
    generator.eval()
    labels = torch.multinomial(features.counts.clamp(min=1), NUM_IMAGES, replacement=True)
    images = [
        generator(torch.randn(len(some), LATENT_SIZE).to(device), some.to(device)).cpu()
        for some in labels.split(BATCH_SIZE)
    ]
    return FrequencyImageDataset(torch.cat(images), labels, features.mechanism, features.class_names)


def _seed(seed: int, step: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))
