"""The sizes and settings of the comparison in `curriculum_vs_dpsgd.py`: for a CPU, for a GPU, and for a quick test.

All arms of a profile share the network, the noise levels and the sampler. Stages and optimizer are set for each arm,
such that all but "longer" take about the same processor time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


DELTA = 1e-5
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Profile:
    """The sizes of one comparison.

    Args:
        resolution (`int`): Height and width of the images in pixels.
        block_out_channels (`tuple[int, ...]`):
            Channels of each level of the network, finest first; the coarsest level has attention.
        config (`dict`): Fields of `DPCurriculumConfig` for all arms.
        arms (`dict[str, dict]`): Further fields of `DPCurriculumConfig` for each arm that trains.
        trials (`dict[str, list[dict]]`, *optional*): Fields that are tried in the place of those of an arm.
        images_per_class (`int`): Synthetic images of each class that are measured.
        num_inference_steps (`int`): Steps of the deterministic solver per sample.
        reference_epochs (`int`): Training epochs of the CNN on the real images.
    """

    resolution: int
    block_out_channels: tuple[int, ...]
    config: Settings
    arms: Mapping[str, Settings]
    trials: Mapping[str, Sequence[Settings]] = field(default_factory=dict)
    images_per_class: int = 500
    num_inference_steps: int = 18
    reference_epochs: int = 5

    def settings(self, arm: str, trial: int | None = None) -> dict[str, Any]:
        """The fields of `DPCurriculumConfig` of an arm, or of one of its trials.

        Args:
            arm (`str`): The name of the arm.
            trial (`int`, *optional*): The number of the trial, from 0.
        """
        tried = {} if trial is None else self.trials[arm][trial]
        return {**self.config, **self.arms[arm], **tried}


def arms_of(
    three_stages: Settings,
    longer: Settings,
    without_dp_sgd: Settings,
    two_stages: Settings,
    dp_sgd_alone: Settings,
    without_privacy: Settings,
) -> dict[str, Settings]:
    """The settings of all arms; those with users have the settings of three stages.

    Args:
        three_stages (`dict`): Central images, frequency features, DP-SGD.
        longer (`dict`): Where a longer curriculum of three stages differs from the one above.
        without_dp_sgd (`dict`): Where the curriculum without its last stage differs from three stages.
        two_stages (`dict`): Central images, DP-SGD.
        dp_sgd_alone (`dict`): DP-SGD.
        without_privacy (`dict`): The warm-up, here on records in the place of central images.
    """
    return {
        "three_stages": three_stages,
        "longer": {**three_stages, **longer},
        "without_dp_sgd": {**three_stages, **without_dp_sgd, "max_train_steps": 0},
        "two_stages": {**two_stages, "frequency_features": 0},
        "dp_sgd_alone": {**dp_sgd_alone, "frequency_features": 0, "central_statistic": "none"},
        "non_private": {**without_privacy, "frequency_features": 0, "central_augmentation": "none"},
        "random_users": three_stages,
        "users_of_a_class": three_stages,
        "users_without_dp_sgd": {**three_stages, **without_dp_sgd, "max_train_steps": 0},
    }


SHARED = {
    "target_delta": DELTA,
    "central_images_per_class": 5,
    "central_sample_rate": 0.1,
    "lr_scheduler": "cosine",
    "noise_level_mean": -0.3,
    "noise_level_std": 1.2,
    "guidance_scale": 1.5,
}
PROFILES = {
    "cpu": Profile(
        resolution=16,
        block_out_channels=(16, 32, 32),
        config={
            **SHARED,
            "train_batch_size": 1024,
            "noise_multiplicity": 1,
            "max_physical_batch_size": 64,
            "lr_warmup_steps": 3,
        },
        arms=arms_of(
            three_stages={
                "central_train_steps": 50,
                "central_batch_size": 32,
                "central_learning_rate": 2e-3,
                "frequency_generator_steps": 1000,
                "frequency_train_steps": 800,
                "frequency_learning_rate": 3e-3,
                "max_train_steps": 27,
                "learning_rate": 2e-3,
            },
            longer={"frequency_generator_steps": 1600, "frequency_train_steps": 1500},
            without_dp_sgd={"frequency_train_steps": 1500},
            two_stages={
                "central_train_steps": 300,
                "central_batch_size": 32,
                "central_learning_rate": 2e-3,
                "max_train_steps": 60,
                "learning_rate": 4e-3,
            },
            dp_sgd_alone={"max_train_steps": 64, "learning_rate": 4e-3},
            without_privacy={"central_train_steps": 1250, "central_batch_size": 64, "central_learning_rate": 2e-3},
        ),
        trials={
            "three_stages": [
                {"frequency_train_steps": 800, "max_train_steps": 27},
                {"frequency_train_steps": 1100, "max_train_steps": 12},
            ],
            "two_stages": [{"learning_rate": 4e-3}, {"learning_rate": 8e-3}],
            "dp_sgd_alone": [{"learning_rate": 4e-3}, {"learning_rate": 8e-3}],
        },
        images_per_class=300,
        num_inference_steps=8,
    ),
    "gpu": Profile(
        resolution=28,
        block_out_channels=(64, 64),
        config={
            **SHARED,
            "train_batch_size": 4096,
            "noise_multiplicity": 4,
            "max_physical_batch_size": 512,
            "lr_warmup_steps": 20,
            "mixed_precision": "bf16",
        },
        arms=arms_of(
            three_stages={
                "central_train_steps": 2000,
                "frequency_train_steps": 10_000,
                "frequency_batch_size": 256,
                "max_train_steps": 700,
            },
            longer={},
            without_dp_sgd={},
            two_stages={"central_train_steps": 2000, "max_train_steps": 800},
            dp_sgd_alone={"max_train_steps": 808},
            without_privacy={"central_train_steps": 13_000, "central_batch_size": 1024},
        ),
        images_per_class=6000,
        num_inference_steps=50,
        reference_epochs=20,
    ),
    # A minute, as a test that everything runs.
    "smoke": Profile(
        resolution=8,
        block_out_channels=(8, 16),
        config={
            **SHARED,
            "accountant": "rdp",  # faster, for so few records
            "central_train_steps": 2,
            "central_batch_size": 8,
            "frequency_features": 20,
            "frequency_noise_multiplier": 10.0,
            "frequency_generator_steps": 2,
            "frequency_train_steps": 2,
            "frequency_batch_size": 8,
            "train_batch_size": 6,
            "max_train_steps": 2,
            "noise_multiplicity": 1,
        },
        arms=arms_of({}, {}, {}, {}, {}, {}),
        trials={"three_stages": [{"learning_rate": 1e-3}, {"learning_rate": 2e-3}]},
        images_per_class=4,
        num_inference_steps=2,
        reference_epochs=1,
    ),
}
