"""Previews of a network in training: the pipeline that it will be published in, and a grid of its samples."""

import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    LDMPipeline,
    ModelMixin,
    SchedulerMixin,
    UNet2DModel,
)
from PIL import Image
from tqdm.auto import tqdm

from ..checks import GUIDANCE_SCALE, check_sampler
from ..config import DPCurriculumConfig
from ..data.dataset_info import DatasetInfo
from ..errors import InputError, TrainingError
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
        scheduler (`SchedulerMixin`): The scheduler of the pipeline.
        conditional (`bool`): Whether the pipeline has classes.
        num_inference_steps (`int`): The number of denoising steps.
        guidance_scale (`float`): The weight of classifier-free guidance; 1 is no guidance.
        s_churn (`float`): The amount of fresh noise in EDM's stochastic sampling; 0 is none.

    Raises:
        InputError: If a value is out of range, or the pipeline does not support guidance or stochastic sampling.
    """
    edm = isinstance(scheduler, EDMEulerScheduler)
    check_sampler(num_inference_steps, scheduler.config.num_train_timesteps, s_churn, edm)
    GUIDANCE_SCALE.check("guidance_scale", guidance_scale)
    if not conditional and guidance_scale != 1:
        raise InputError("An unconditional pipeline has no classes to guide to: leave `guidance_scale` at 1.")
    if not conditional and s_churn > 0:
        raise InputError("An unconditional pipeline has no stochastic sampler: leave `s_churn` at 0.")


def check_latent_sampling(scheduler: SchedulerMixin, vae: ModelMixin, conditional: bool) -> None:
    """Refuse a scheduler or an autoencoder with which a pipeline of latents makes wrong images.

    Args:
        scheduler (`SchedulerMixin`): The noise scheduler of the run.
        vae (`ModelMixin`): The autoencoder.
        conditional (`bool`): Whether the pipeline has classes.

    Raises:
        InputError: If the scheduler clips samples as if they were pixels, or diffusers' pipeline without classes would
            leave out the shift of the latents.
    """
    if scheduler.config.get("clip_sample"):
        raise InputError(
            "The noise scheduler clips samples to the range of pixels, which latents exceed: make it with "
            "clip_sample=False, or by `build_scheduler` with `latents`."
        )
    if not conditional and vae.config.get("shift_factor"):
        raise InputError(
            "Without classes the pipeline is diffusers' LDMPipeline, which knows no shift_factor as this autoencoder "
            "has: use another autoencoder, or images with labels."
        )


def generator_of(pipeline: DiffusionPipeline) -> torch.Generator:
    """A random generator on the device on which a pipeline draws its first noise.

    Args:
        pipeline (`DiffusionPipeline`): The pipeline.
    """
    return torch.Generator("cpu" if isinstance(pipeline, LDMPipeline) else pipeline.device)


class Preview:
    """Makes pipelines of a network in training, and grids of its samples.

    Args:
        noise_scheduler (`DDPMScheduler` or `EDMEulerScheduler`): The scheduler of the pipeline.
        info (`DatasetInfo`): The public description of the data set.
        config (`DPCurriculumConfig`): The fields of sampling and `seed` are used.
        vae (`ModelMixin`, *optional*): The autoencoder that makes images of latents; None for pixels.
    """

    def __init__(
        self,
        noise_scheduler: DDPMScheduler | EDMEulerScheduler,
        info: DatasetInfo,
        config: DPCurriculumConfig,
        vae: ModelMixin | None = None,
    ):
        self.noise_scheduler = noise_scheduler
        self.class_names = info.class_names
        self.config = config
        self.vae = vae

    def pipeline(self, unet: UNet2DModel) -> DDPMPipeline | LDMPipeline | ClassConditionalPipeline:
        """Make the pipeline of `unet`; this puts the network into evaluation mode."""
        unet.eval()
        if self.class_names is None and self.vae is None:
            return DDPMPipeline(unet=unet, scheduler=self.noise_scheduler)
        if self.class_names is None:  # it gives a scheduler no generator, and that of DDIM needs none
            return LDMPipeline(self.vae, unet, DDIMScheduler.from_config(self.noise_scheduler.config))
        id2label = dict(enumerate(self.class_names))
        return ClassConditionalPipeline(unet, self.noise_scheduler, id2label, self.vae)

    def check(self, unet: UNet2DModel) -> None:
        """Sample one image in three steps, so that no budget is spent on a network that cannot be sampled.

        Raises:
            InputError: If the settings are out of range, or sampling fails.
        """
        config, scheduler, conditional = self.config, self.noise_scheduler, self.class_names is not None
        steps, most = config.num_inference_steps, scheduler.config.num_train_timesteps
        check_sampling(scheduler, conditional, steps, config.guidance_scale, config.s_churn)
        if not conditional and isinstance(scheduler, EDM_SCHEDULERS):
            raise InputError("Without classes the pipeline is diffusers' DDPMPipeline: use a DDPMScheduler with it.")
        if self.vae is not None:
            check_latent_sampling(scheduler, self.vae, conditional)
        if scheduler.config.get("variance_type") in ("learned", "learned_range"):
            raise InputError('The UNet predicts no variance: use a noise scheduler with variance_type="fixed_small".')
        try:
            # Three steps: DDPM adds no noise in the last one and EDM none in the first; the middle one is like all
            # others.
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
        """Sample a grid with one row per class; the noise is always the same, so that grids can be compared.

        Raises:
            TrainingError: If a sample is not made of finite numbers.
        """
        pipeline = self.pipeline(unet)
        generator = generator_of(pipeline).manual_seed(self.config.seed)
        rows = min(GRID_COLUMNS if self.class_names is None else len(self.class_names), MAX_GRID_ROWS)
        samples = [
            self._sample(pipeline, label, GRID_COLUMNS, self.config.num_inference_steps, generator).cpu()
            for label in tqdm(range(rows), desc="Sampling", leave=False)
        ]
        if not all(sample.isfinite().all() for sample in samples):
            raise TrainingError(
                "The samples of the network are not finite numbers, as its training diverged: start a new run with "
                "lower learning rates."
            )
        return image_grid(torch.cat(samples), GRID_COLUMNS)

    def _sample(
        self,
        pipeline: DiffusionPipeline,
        label: int,
        count: int,
        num_inference_steps: int,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """Sample `(count, channels, height, width)` images in [0, 1], of class `label` if there are classes."""
        pipeline.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": num_inference_steps, "generator": generator}
        if self.class_names is None:
            images = pipeline(batch_size=count, output_type="np", **options).images
            return torch.from_numpy(images).permute(0, 3, 1, 2)
        for name in ("guidance_scale", "s_churn", "s_tmin", "s_tmax"):
            options[name] = getattr(self.config, name)
        return pipeline(class_labels=[label] * count, output_type="pt", **options).images
