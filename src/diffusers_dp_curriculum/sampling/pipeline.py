"""The pipeline that samples class-conditional images; its code is published with the weights.

`save_pretrained` copies this file next to `model_index.json`, so that anyone can sample the model with diffusers alone.
For that reason it imports only diffusers and torch.
"""

import inspect
import json
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    EDMEulerScheduler,
    ImagePipelineOutput,
    SchedulerMixin,
    UNet2DModel,
    VQModel,
)
from diffusers.utils.torch_utils import randn_tensor


DECODED_AT_ONCE = 16  # a decoder needs many times the memory of the images that it makes


class ClassConditionalPipeline(DiffusionPipeline):
    r"""Pipeline for class-conditional image generation with classifier-free guidance.

    A saved pipeline loads without any package but diffusers, by
    `DiffusionPipeline.from_pretrained(directory, trust_remote_code=True)`. `ClassConditionalPipeline.from_pretrained`
    needs no such trust: it runs the class it is called on, never the code in the directory.

    Parameters:
        unet ([`UNet2DModel`]):
            The denoiser, with `num_classes + 1` class embeddings: one for each class and a last one for the null class,
            which means "no label" and gives the unconditional prediction of guidance.
        scheduler ([`SchedulerMixin`]):
            Any diffusers scheduler that fits how `unet` was trained.
        id2label (`dict[int, str]`, *optional*):
            The name of every class, `{0: "T-shirt", 1: "Trouser", ...}`. Without it, the names are `"0"`, `"1"` and
            so on.
        vae ([`AutoencoderKL`], [`AutoencoderTiny`] or [`VQModel`], *optional*):
            The autoencoder whose latents `unet` denoises, which makes images of them. Without it, `unet` denoises
            pixels.

    Raises:
        `ValueError`: If `unet` has no class embeddings besides the null class, or `id2label` does not give every class
            a name of its own.

    Examples:
        >>> from diffusers import DDPMScheduler, UNet2DModel
        >>> from diffusers_dp_curriculum import ClassConditionalPipeline
        >>> unet = UNet2DModel(
        ...     sample_size=8,
        ...     in_channels=1,
        ...     out_channels=1,
        ...     block_out_channels=(32, 64),
        ...     down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        ...     up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ...     num_class_embeds=3,
        ... )
        >>> pipe = ClassConditionalPipeline(unet, DDPMScheduler(), id2label={0: "healthy", 1: "ill"})
        >>> images = pipe(["ill", "ill", "healthy"], guidance_scale=2.0, num_inference_steps=5).images
        >>> [image.size for image in images]
        [(8, 8), (8, 8), (8, 8)]
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components: ClassVar[list[str]] = ["vae"]

    # Read at import, because diffusers runs remote code from a single cached copy, which is overwritten when the next
    # directory is loaded.
    _source = Path(__file__).read_text(encoding="utf-8")

    # `id2label` is annotated as a plain `dict` because JSON turns its keys into strings, and diffusers warns about keys
    # that do not have the annotated type.
    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        id2label: dict | None = None,  # type: ignore[type-arg]
        vae: AutoencoderKL | AutoencoderTiny | VQModel | None = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)

        if (unet.config.num_class_embeds or 0) < 2:
            raise ValueError(
                "`unet` is not class-conditional: create it with `num_class_embeds=num_classes + 1`, the last of them "
                "for the null class."
            )
        class_ids = range(unet.config.num_class_embeds - 1)
        if id2label is not None:
            id2label = {int(class_id): name for class_id, name in id2label.items()}
            if sorted(id2label) != list(class_ids) or len(set(id2label.values())) != len(class_ids):
                raise ValueError(
                    f"`id2label` is {id2label}: give each of the classes 0 to {class_ids[-1]} a name of its own."
                )
        self.register_to_config(id2label=id2label)

        self.class_names = [id2label[class_id] if id2label else str(class_id) for class_id in class_ids]

    def get_label_ids(self, class_labels: list[int | str]) -> list[int]:
        r"""Convert labels, given as ids or names, to class ids.

        Args:
            class_labels (`list[int | str]`):
                Class ids from 0 to `num_classes - 1`, or names from `class_names`.

        Returns:
            `list[int]`: One id per label.

        Raises:
            `ValueError`: If the list is empty or has a label that is not one of the classes.
        """
        if hasattr(class_labels, "tolist"):  # a tensor or an array
            class_labels = class_labels.tolist()
        ids: dict[int | str, int] = {name: class_id for class_id, name in enumerate(self.class_names)}
        ids |= {class_id: class_id for class_id in range(len(self.class_names))}
        listed = isinstance(class_labels, Sequence) and not isinstance(class_labels, str)
        known = listed and all(isinstance(label, (Real, str)) and label in ids for label in class_labels)
        if not known or len(class_labels) == 0:
            raise ValueError(
                f"`class_labels` is {class_labels!r}: give a list of ids from 0 to {len(self.class_names) - 1} or of "
                f"names from {self.class_names}."
            )
        return [ids[label] for label in class_labels]

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int | str],
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        s_churn: float = 0.0,
        s_tmin: float = 0.05,
        s_tmax: float = 50.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        r"""Generate one image for each label.

        Args:
            class_labels (`list[int | str]`):
                The class of each image, as an id from 0 to `num_classes - 1` or a name from `class_names`.
            guidance_scale (`float`, *optional*, defaults to 1.0):
                Weight `w >= 0` of classifier-free guidance, `uncond + w * (cond - uncond)`. At 1 the model is sampled
                as it is, at half the cost; above 1 images are more typical of their class and less varied.
            num_inference_steps (`int`, *optional*, defaults to 50):
                The number of denoising steps.
            s_churn (`float`, *optional*, defaults to 0.0):
                Above 0, fresh noise is added before each step and taken away by it, which corrects what earlier steps
                got wrong: the stochastic sampler of EDM ([Karras et al.
                2022](https://huggingface.co/papers/2206.00364), algorithm 2, without the second-order correction).
                Needs an [`EDMEulerScheduler`].
            s_tmin (`float`, *optional*, defaults to 0.05):
                The lowest noise level at which noise is added.
            s_tmax (`float`, *optional*, defaults to 50.0):
                The highest noise level at which noise is added.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Makes generation deterministic; a list has one generator per image.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"` for a list of `PIL.Image` (mode `L` for one channel), `"np"` for a `numpy` array of shape
                `(batch, height, width, channels)` or `"pt"` for a tensor of shape `(batch, channels, height, width)`,
                both with values in [0, 1].
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`~pipelines.ImagePipelineOutput`] instead of a plain tuple.

        Returns:
            [`~pipelines.ImagePipelineOutput`] or `tuple`: The images, alone or as the first element of a tuple.

        Raises:
            `ValueError`: If a label is not one of the classes, or another argument is out of range.
        """
        label_ids = self.get_label_ids(class_labels)
        if not guidance_scale >= 0:
            raise ValueError(f"`guidance_scale` is {guidance_scale}: give 0 or more.")
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` is {num_inference_steps}: give 1 or more.")
        if not s_churn >= 0 or (s_churn > 0 and not isinstance(self.scheduler, EDMEulerScheduler)):
            raise ValueError(f"`s_churn` is {s_churn}: give 0, or more with an `EDMEulerScheduler`.")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'`output_type` is {output_type!r}: give "pil", "np" or "pt".')

        device = self._execution_device  # correct also with model offloading; all pipelines of diffusers use it
        guided = guidance_scale != 1
        labels = torch.tensor(label_ids, device=device)
        if guided:
            null_class = len(self.class_names)
            labels = torch.cat([labels, torch.full_like(labels, null_class)])

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        step_kwargs = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            step_kwargs["generator"] = generator

        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        image_shape = (len(label_ids), self.unet.config.in_channels, height, width)
        image = randn_tensor(image_shape, generator=generator, device=device, dtype=self.unet.dtype)
        image = image * self.scheduler.init_noise_sigma

        for index, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            noise_label = t
            if s_churn > 0 and s_tmin <= self.scheduler.sigmas[index] <= s_tmax:
                # The noise level is raised in the schedule itself, from which both the network and the step take it.
                # The scheduler's own `s_churn` would combine the noisier image with the network's output for the
                # image before the noise was added.
                sigma = self.scheduler.sigmas[index].clone()
                sigma_hat = sigma * (1 + min(s_churn / num_inference_steps, 2**0.5 - 1))
                self.scheduler.sigmas[index] = sigma_hat
                noise = randn_tensor(image.shape, generator=generator, device=device, dtype=image.dtype)
                image = image + (sigma_hat**2 - sigma**2) ** 0.5 * noise
                noise_label = self.scheduler.precondition_noise(sigma_hat)

            model_input = torch.cat([image, image]) if guided else image
            model_input = self.scheduler.scale_model_input(model_input, t)
            model_output = self.unet(model_input, noise_label, class_labels=labels).sample
            if guided:
                cond, uncond = model_output.chunk(2)
                model_output = uncond + guidance_scale * (cond - uncond)
            image = self.scheduler.step(model_output, t, image, **step_kwargs).prev_sample

        if self.vae is not None:
            latents = image / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0)
            image = torch.cat([self.vae.decode(some).sample for some in latents.split(DECODED_AT_ONCE)])
        image = (image / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            image = image.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            image = self.numpy_to_pil(image)

        self.maybe_free_model_hooks()

        if not return_dict:
            return (image,)
        return ImagePipelineOutput(images=image)

    def save_config(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        r"""Write `model_index.json` and a copy of this file; called by `save_pretrained`.

        Args:
            save_directory (`str` or `os.PathLike`):
                The directory, which is created if it does not exist.
            kwargs (`dict[str, Any]`, *optional*):
                Passed on to [`~ConfigMixin.save_config`].
        """
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        Path(save_directory, "pipeline.py").write_text(self._source, encoding="utf-8")
        super().save_config(save_directory, **kwargs)

    def to_json_string(self) -> str:
        r"""The text of `model_index.json`, which names the file that holds the class: `["pipeline", class name]`."""
        config = json.loads(super().to_json_string())
        config.pop("_name_or_path", None)  # do not publish where this pipeline was loaded from
        config["_class_name"] = ["pipeline", type(self).__name__]
        return json.dumps(config, indent=2) + "\n"

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        # With a class name that names no file, diffusers loads into the class on which `from_pretrained` was called:
        # `ClassConditionalPipeline.from_pretrained` neither runs the published code nor needs `trust_remote_code`.
        # diffusers reads the file by this private method of `ConfigMixin` and has no public method for it.
        return {**super()._dict_from_json_file(json_file), "_class_name": cls.__name__}
