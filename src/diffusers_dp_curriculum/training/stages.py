"""The curriculum: the stages that a run goes through before DP-SGD, in order.

A warm-up stage queries labelled images from the records through the ledger, and trains on them in the ordinary way.
What a plan, a rehearsal, a checkpoint, a progress bar and the published pictures have of a stage follows from the list
that [`warm_up_stages`] makes; DP-SGD is the last stage of every run.
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
        queries (`ImageQueries`): What is asked of the records.
        train_steps (`int`): Steps of training; they cost no privacy.
        batch_size (`int`): Images a step, of all processes together.
        learning_rate (`float`): Learning rate of Adam.
        augmentation (`str`): Variations of the images, as [`make_augmentation`] names them.
    """

    queries: ImageQueries
    train_steps: int
    batch_size: int
    learning_rate: float
    augmentation: str

    @property
    def name(self) -> str:
        """`str`: The name in checkpoints and of files, such as `"central_images"`."""
        return self.queries.released.name

    @property
    def title(self) -> str:
        """`str`: The name for people to read."""
        return self.name.replace("_", " ")


def warm_up_stages(config: DPCurriculumConfig) -> list[WarmUpStage]:
    """The warm-up stages that a config asks for, in order; none for DP-SGD alone.

    Args:
        config (`DPCurriculumConfig`): The hyper-parameters.
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
