"""The curriculum: the list of stages that a run goes through before DP-SGD.

A stage releases something from the records through the ledger, and then trains on it in the ordinary way: the network
on labelled images, or a generator that makes such images. Plan, time estimate, checkpoints, progress bars and published
pictures all follow from the list that [`warm_up_stages`] returns. DP-SGD is the last stage of every run.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..checks import AUTO
from ..config import DPCurriculumConfig
from ..mechanisms.central_images import CentralImageDataset, CentralImageQueries
from ..mechanisms.class_features import ClassFeatureQuery, ClassFeatures
from ..mechanisms.frequency_features import FrequencyFeatureQuery, FrequencyFeatures
from ..mechanisms.perceptual_features import PerceptualFeatureQuery, PerceptualFeatures
from ..mechanisms.public_eyes import PublicEyes
from ..mechanisms.releases import Queries, Release, ReleasedImages
from .auxiliary_generator import GENERATOR, TITLE, FrequencyImageDataset
from .central_choice import PUBLISHED_NOISE


DP_SGD = "dp_sgd"  # the name of the last stage
# Everything that stages release or make of releases, by name: what a run keeps in private/.
RELEASES: dict[str, type[Release]] = {
    release.name: release
    for release in (CentralImageDataset, FrequencyFeatures, PerceptualFeatures, FrequencyImageDataset)
}


@dataclass(frozen=True)
class WarmUpStage:
    """A stage of ordinary training of the network on released images.

    Args:
        images (`type[ReleasedImages]`): The class of the images.
        queries (`Queries`, *optional*): The queries that release the images; None if the stage before makes them.
        train_steps (`int`): Number of training steps, which cost no privacy.
        batch_size (`int`): Images per step, over all processes.
        batch_size_option (`str`): The name of the option that sets the batch size, for messages.
        learning_rate (`float`): Learning rate of Adam.
        learning_rate_option (`str`): The name of the option that sets the learning rate, for messages.
        augmentation (`str`): Name of the random variations of the images, see [`make_augmentation`].
    """

    images: type[ReleasedImages]
    queries: Queries | None
    train_steps: int
    batch_size: int
    batch_size_option: str
    learning_rate: float
    learning_rate_option: str
    augmentation: str

    @property
    def name(self) -> str:
        """`str`: The name in checkpoints and file names, such as `"central_images"`."""
        return self.images.name

    @property
    def title(self) -> str:
        """`str`: What the progress bar says, such as `"Warm-up on central images"`."""
        return f"Warm-up on {self.name.replace('_', ' ')}"


@dataclass(frozen=True)
class GeneratorStage:
    """A stage that fits an auxiliary generator to released features of classes; the next stage trains on its images.

    Args:
        queries (`ClassFeatureQuery`): The query that releases the features.
        train_steps (`int`): Number of steps of fitting, which cost no privacy.
    """

    queries: ClassFeatureQuery[ClassFeatures]
    train_steps: int
    name: ClassVar[str] = GENERATOR
    title: ClassVar[str] = TITLE


Stage = WarmUpStage | GeneratorStage


def warm_up_stages(config: DPCurriculumConfig, eyes: PublicEyes | None = None) -> list[Stage]:
    """The stages before DP-SGD that a config asks for, in order.

    Args:
        config (`DPCurriculumConfig`):
            The hyper-parameters, in which the choice of [`choose_frequency_features`] has replaced `"auto"`.
        eyes (`PublicEyes`, *optional*): The public model whose features are queried in the place of random ones.

    Returns:
        `list[Stage]`: The stages; empty for DP-SGD alone.
    """
    stages: list[Stage] = []
    if config.central_statistic != "none":
        central = CentralImageQueries(
            images_per_class=config.central_images_per_class,
            statistic=config.central_statistic,
            # A plan puts a number in the place of "auto".
            noise_multiplier=PUBLISHED_NOISE
            if config.central_noise_multiplier == AUTO
            else float(config.central_noise_multiplier),
            sample_rate=config.central_sample_rate,
            pool_factor=config.central_pool_factor,
            mode_bins=config.central_mode_bins,
        )
        stages.append(
            WarmUpStage(
                CentralImageDataset,
                central,
                train_steps=config.central_train_steps,
                batch_size=config.central_batch_size,
                batch_size_option="central_batch_size",
                learning_rate=config.central_learning_rate,
                learning_rate_option="central_learning_rate",
                augmentation=config.central_augmentation,
            )
        )
    assert config.frequency_features != AUTO
    if config.frequency_features != 0:
        noise_multiplier = float(config.frequency_noise_multiplier)
        features: ClassFeatureQuery[ClassFeatures]
        if eyes is not None:
            features = PerceptualFeatureQuery(eyes, noise_multiplier)
        else:
            features = FrequencyFeatureQuery(
                num_features=int(config.frequency_features),
                noise_multiplier=noise_multiplier,
                kernel_widths=config.frequency_kernel_widths,
                seed=config.seed,
            )
        stages.append(GeneratorStage(features, config.frequency_generator_steps))
        stages.append(
            WarmUpStage(
                FrequencyImageDataset,
                None,
                train_steps=config.frequency_train_steps,
                batch_size=config.frequency_batch_size,
                batch_size_option="frequency_batch_size",
                learning_rate=config.frequency_learning_rate,
                learning_rate_option="frequency_learning_rate",
                augmentation="none",
            )
        )
    return stages
