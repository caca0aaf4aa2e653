"""The sizes of the comparison in `curriculum_vs_dpsgd.py`: for a CPU, for a GPU, and for a quick test."""

from dataclasses import dataclass, field


DELTA = 1e-5


@dataclass(frozen=True)
class Profile:
    """The sizes of one comparison.

    Args:
        resolution (`int`): Height and width of the images in pixels.
        block_out_channels (`tuple[int, ...]`):
            Channels of each level of the network, finest first; the coarsest level has attention.
        config (`dict`): Fields of `DPCurriculumConfig` for the curriculum with mean images.
        plain_batch_size (`int`): Images per step in the arms without DP-SGD.
        images_per_class (`int`): Synthetic images of each class that are measured.
        num_inference_steps (`int`): Steps of the deterministic solver per sample.
        reference_epochs (`int`): Training epochs of the CNN on the real images.
    """

    resolution: int
    block_out_channels: tuple[int, ...]
    config: dict = field(default_factory=dict)
    plain_batch_size: int = 64
    images_per_class: int = 500
    num_inference_steps: int = 18
    reference_epochs: int = 5

    @property
    def warm_up_passes(self) -> int:
        """The number of passes of the curriculum before DP-SGD."""
        return self.config["central_train_steps"] * self.config["central_batch_size"]

    @property
    def passes(self) -> int:
        """The expected number of passes of the curriculum, and so of every arm."""
        return self.warm_up_passes + self.config["max_train_steps"] * self.step_passes

    @property
    def step_passes(self) -> int:
        """The expected number of passes of one DP-SGD step."""
        return self.config["train_batch_size"] * self.config["noise_multiplicity"]


SHARED = {
    "target_delta": DELTA,
    "central_images_per_class": 5,
    "central_sample_rate": 0.1,
    "frequency_features": 0,
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
            "central_train_steps": 300,
            "central_batch_size": 32,
            "central_learning_rate": 2e-3,
            "train_batch_size": 1024,
            "max_train_steps": 100,
            "noise_multiplicity": 1,
            "max_physical_batch_size": 64,
            "learning_rate": 4e-3,
            "lr_warmup_steps": 3,
        },
        images_per_class=300,
        num_inference_steps=12,
    ),
    "gpu": Profile(
        resolution=28,
        block_out_channels=(64, 64),
        config={
            **SHARED,
            "central_train_steps": 2000,
            "central_batch_size": 64,
            "train_batch_size": 4096,
            "max_train_steps": 800,
            "noise_multiplicity": 4,
            "max_physical_batch_size": 512,
            "lr_warmup_steps": 20,
            "mixed_precision": "bf16",
        },
        plain_batch_size=1024,
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
            "central_train_steps": 4,
            "central_batch_size": 8,
            "train_batch_size": 16,
            "max_train_steps": 4,
            "noise_multiplicity": 1,
        },
        images_per_class=4,
        num_inference_steps=2,
        reference_epochs=1,
    ),
}
