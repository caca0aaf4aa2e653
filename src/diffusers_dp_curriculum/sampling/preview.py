"""Samples of a network: the pipeline it is published in, and a grid of what it makes."""

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, EDMEulerScheduler, SchedulerMixin, UNet2DModel
from PIL import Image
from tqdm.auto import tqdm

from ..checks import GUIDANCE_SCALE, S_CHURN
from ..config import DPCurriculumConfig
from ..data.dataset_info import DatasetInfo
from ..errors import InputError
from ..gradients.losses import EDM_SCHEDULERS
from ..pictures import image_grid
from .pipeline import ClassConditionalPipeline


GRID_COLUMNS = 10
MAX_GRID_ROWS = 20


def check_sampling(
    scheduler: SchedulerMixin, conditional: bool, num_inference_steps: int, guidance_scale: float, s_churn: float
) -> None:
    """Refuse settings that no pipeline with this scheduler can be sampled with.

    Args:
        scheduler (`SchedulerMixin`): That of the pipeline.
        conditional (`bool`): Whether the pipeline has classes.
        num_inference_steps (`int`): As [`ClassConditionalPipeline`] has it, like those that follow.
        guidance_scale (`float`): Of classifier-free guidance.
        s_churn (`float`): Of EDM's stochastic sampling.

    Raises:
        InputError: If so.
    """
    most = scheduler.config.num_train_timesteps
    if not 1 <= num_inference_steps <= most:
        raise InputError(
            f"`num_inference_steps` is {num_inference_steps}: give 1 to {most}, the steps of the schedule."
        )
    GUIDANCE_SCALE.check("guidance_scale", guidance_scale)
    S_CHURN.check("s_churn", s_churn)
    if not conditional and guidance_scale != 1:
        raise InputError("An unconditional pipeline has no classes to guide to: leave `guidance_scale` at 1.")
    if not conditional and s_churn > 0:
        raise InputError("An unconditional pipeline has no stochastic sampler: leave `s_churn` at 0.")
    if s_churn > 0 and not isinstance(scheduler, EDMEulerScheduler):
        raise InputError("`s_churn` is of EDM's sampler: leave it at 0, or use an EDMEulerScheduler.")


class Preview:
    """Pipelines of a network in training, and grids of what it samples.

    Args:
        noise_scheduler (`DDPMScheduler` or `EDMEulerScheduler`): The scheduler of the pipeline.
        info (`DatasetInfo`): The public description of the data set.
        config (`DPCurriculumConfig`): The fields on samples and `seed` are used.
    """

    def __init__(
        self, noise_scheduler: DDPMScheduler | EDMEulerScheduler, info: DatasetInfo, config: DPCurriculumConfig
    ):
        self.noise_scheduler = noise_scheduler
        self.class_names = info.class_names
        self.config = config

    def pipeline(self, unet: UNet2DModel) -> DDPMPipeline | ClassConditionalPipeline:
        """The pipeline of `unet`, which it leaves in eval mode."""
        unet.eval()
        if self.class_names is None:
            return DDPMPipeline(unet=unet, scheduler=self.noise_scheduler)
        id2label = dict(enumerate(self.class_names))
        return ClassConditionalPipeline(unet=unet, scheduler=self.noise_scheduler, id2label=id2label)

    def check(self, unet: UNet2DModel) -> None:
        """Draw one image in three steps: what cannot be sampled must not be trained.

        Raises:
            InputError: If it cannot be.
        """
        config, scheduler, conditional = self.config, self.noise_scheduler, self.class_names is not None
        steps, most = config.num_inference_steps, scheduler.config.num_train_timesteps
        check_sampling(scheduler, conditional, steps, config.guidance_scale, config.s_churn)
        if not conditional and isinstance(scheduler, EDM_SCHEDULERS):
            raise InputError("Without classes the pipeline is diffusers' DDPMPipeline: use a DDPMScheduler with it.")
        if scheduler.config.get("variance_type") in ("learned", "learned_range"):
            raise InputError('The UNet predicts no variance: use a noise scheduler with variance_type="fixed_small".')
        try:
            # The last step adds no noise, and EDM's first none either: the one between does what all others do.
            image = self._sample(self.pipeline(unet), 0, 1, min(3, most), None)
            if not image.isfinite().all():
                raise ArithmeticError("its images are not finite")
        except Exception as error:
            raise InputError(
                f"The pipeline of this UNet and noise scheduler cannot be sampled ({error}): correct one of them."
            ) from error
        scheduler.set_timesteps(steps)
        if isinstance(scheduler, DDPMScheduler) and not set(scheduler.timesteps.tolist()) <= set(range(most)):
            raise InputError(
                f"{steps} inference steps leave the timesteps 0 to {most - 1} of the noise scheduler: give another "
                "`num_inference_steps`, or a scheduler with steps_offset=0."
            )

    def grid(self, unet: UNet2DModel) -> Image.Image:
        """Samples of every class, a row each; always from the same noise, so that two grids can be compared."""
        generator = torch.Generator(unet.device).manual_seed(self.config.seed)
        rows = min(GRID_COLUMNS if self.class_names is None else len(self.class_names), MAX_GRID_ROWS)
        pipeline = self.pipeline(unet)
        samples = [
            self._sample(pipeline, label, GRID_COLUMNS, self.config.num_inference_steps, generator).cpu()
            for label in tqdm(range(rows), desc="Sampling", leave=False)
        ]
        return image_grid(torch.cat(samples), GRID_COLUMNS)

    def _sample(
        self,
        pipeline: DiffusionPipeline,
        label: int,
        count: int,
        num_inference_steps: int,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """`count` images of a class, or of an unconditional model: `(count, channels, height, width)` in [0, 1]."""
        pipeline.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": num_inference_steps, "generator": generator}
        if self.class_names is None:
            images = pipeline(batch_size=count, output_type="np", **options).images
            return torch.from_numpy(images).permute(0, 3, 1, 2)
        for name in ("guidance_scale", "s_churn", "s_tmin", "s_tmax"):
            options[name] = getattr(self.config, name)
        return pipeline(class_labels=[label] * count, output_type="pt", **options).images
