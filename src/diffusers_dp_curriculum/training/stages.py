"""The curriculum: the list of stages that a run goes through before DP-SGD.

A warm-up stage releases labelled images from the records through the ledger, and then trains on them in the ordinary
way. Plan, time estimate, checkpoints, progress bars and published pictures all follow from the list that
[`warm_up_stages`] returns. DP-SGD is the last stage of every run.
"""

from dataclasses import dataclass

from ..config import DPCurriculumConfig
from ..mechanisms.central_images import CentralImageQueries
from ..mechanisms.released_images import ImageQueries


DP_SGD = "dp_sgd"  # the name of the last stage


@dataclass(frozen=True)
class WarmUpStage:
    """A stage of ordinary training on images that its queries release.

    Args:
        queries (`ImageQueries`): The queries to the records.
        train_steps (`int`): Number of training steps, which cost no privacy.
        batch_size (`int`): Images per step, over all processes.
        learning_rate (`float`): Learning rate of Adam.
        augmentation (`str`): Name of the random variations of the images, see [`make_augmentation`].
    """

    queries: ImageQueries
    train_steps: int
    batch_size: int
    learning_rate: float
    augmentation: str

    @property
    def name(self) -> str:
        """`str`: The name in checkpoints and file names, such as `"central_images"`."""
        return self.queries.released.name

    @property
    def title(self) -> str:
        """`str`: The name in messages, such as `"central images"`."""
        return self.name.replace("_", " ")


def warm_up_stages(config: DPCurriculumConfig) -> list[WarmUpStage]:
    """The warm-up stages that a config asks for, in order.

    Args:
        config (`DPCurriculumConfig`): The hyper-parameters.

    Returns:
        `list[WarmUpStage]`: The stages; empty for DP-SGD alone.
    """
    stages = []
    if config.central_statistic != "none":
        stages.append(
            WarmUpStage(
                CentralImageQueries(
                    images_per_class=config.central_images_per_class,
                    statistic=config.central_statistic,
                    noise_multiplier=config.central_noise_multiplier,
                    sample_rate=config.central_sample_rate,
                    pool_factor=config.central_pool_factor,
                    mode_bins=config.central_mode_bins,
                ),
                train_steps=config.central_train_steps,
                batch_size=config.central_batch_size,
                learning_rate=config.central_learning_rate,
                augmentation=config.central_augmentation,
            )
        )
    return stages
