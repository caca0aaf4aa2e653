"""Builds networks and noise schedulers for a data set from a few plain numbers."""

from collections.abc import Sequence
from typing import Any

from diffusers import DDPMScheduler, EDMEulerScheduler, UNet2DModel

from ..checks import (
    BETA_SCHEDULE,
    BLOCK_CHANNELS,
    DDPM_NUM_STEPS,
    EDM_NUM_STEPS,
    EDM_SIGMA_DATA,
    EDM_SIGMA_MAX,
    EDM_SIGMA_MIN,
    LAYERS_PER_BLOCK,
    NOISE_SCHEDULER,
    NORM_GROUPS,
    check_levels,
)
from ..names import check_config_name, no_config


def build_unet(
    resolution: int,
    num_channels: int,
    num_classes: int | None,
    *,
    block_out_channels: Sequence[int] = (32, 64),
    layers_per_block: int = 1,
    attention_levels: int = 1,
    model_config_name_or_path: str | None = None,
) -> UNet2DModel:
    """Build a `UNet2DModel` with attention at its coarsest levels and, after the classes, an embedding for "no class".

    Args:
        resolution (`int`): Height and width of the images, in pixels.
        num_channels (`int`): 1 for grey images, 3 for colour, or the channels of latents (see [`latent_info`]).
        num_classes (`int`, *optional*): Number of classes, or None for an unconditional network.
        block_out_channels (`Sequence[int]`, *optional*, defaults to `(32, 64)`):
            Channels of each level, finest first; multiples of 8.
        layers_per_block (`int`, *optional*, defaults to 1): Residual blocks per level.
        attention_levels (`int`, *optional*, defaults to 1): How many of the coarsest levels have attention.
        model_config_name_or_path (`str`, *optional*):
            Directory or Hub id of a `UNet2DModel` whose config is used instead of the three arguments above.

    Returns:
        `UNet2DModel`: A network with random weights.

    Raises:
        InputError: If an argument is out of range, or no config is found at `model_config_name_or_path`.

    Examples:
        >>> from diffusers_dp_curriculum import build_unet
        >>> unet = build_unet(resolution=28, num_channels=1, num_classes=10)
        >>> unet.config.down_block_types
        ('DownBlock2D', 'AttnDownBlock2D')
        >>> unet.config.num_class_embeds
        11
    """
    sizes = network_sizes(resolution, num_channels, num_classes)
    if model_config_name_or_path is not None:
        check_config_name(model_config_name_or_path)
        try:
            return UNet2DModel.from_config(UNet2DModel.load_config(model_config_name_or_path), **sizes)
        except (OSError, ValueError) as error:
            raise no_config(model_config_name_or_path) from error
    BLOCK_CHANNELS.check_each("block_out_channels", block_out_channels)
    levels = len(block_out_channels)
    LAYERS_PER_BLOCK.check("layers_per_block", layers_per_block)
    check_levels(attention_levels, levels)
    attention = [level >= levels - attention_levels for level in range(levels)]
    return UNet2DModel(
        **sizes,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in attention),
        up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention)),
        norm_num_groups=NORM_GROUPS,
    )


def network_sizes(resolution: int, num_channels: int, num_classes: int | None) -> dict[str, Any]:
    """The entries of a network's config that follow from a data set.

    Args:
        resolution (`int`): Height and width of the images, in pixels.
        num_channels (`int`): 1 for grey images, 3 for colour.
        num_classes (`int`, *optional*): Number of classes, or None for an unconditional network.
    """
    return {
        "sample_size": resolution,
        "in_channels": num_channels,
        "out_channels": num_channels,
        "num_class_embeds": None if num_classes is None else num_classes + 1,
    }


def build_scheduler(
    noise_scheduler: str = "ddpm",
    *,
    prediction_type: str = "v_prediction",
    ddpm_num_steps: int = 1000,
    ddpm_beta_schedule: str = "squaredcos_cap_v2",
    edm_sigma_data: float = 0.5,
    edm_sigma_max: float = 80.0,
    latents: bool = False,
) -> DDPMScheduler | EDMEulerScheduler:
    """Build the noise scheduler with which a network is trained and published.

    Args:
        noise_scheduler (`str`, *optional*, defaults to `"ddpm"`): `"ddpm"`, or `"edm"` (Karras et al. 2022).
        prediction_type (`str`, *optional*, defaults to `"v_prediction"`):
            What the network predicts: `"epsilon"`, `"v_prediction"` or, with DDPM, `"sample"`.
        ddpm_num_steps (`int`, *optional*, defaults to 1000): Timesteps of DDPM's noise schedule, at least 2.
        ddpm_beta_schedule (`str`, *optional*, defaults to `"squaredcos_cap_v2"`): Noise schedule of DDPM.
        edm_sigma_data (`float`, *optional*, defaults to 0.5):
            Constant of EDM's loss, > 0: the standard deviation that pixels in [-1, 1] are assumed to have. It is
            published and must not be measured on the records.
        edm_sigma_max (`float`, *optional*, defaults to 80.0): Noise level from which EDM samples, > 0.002.
        latents (`bool`, *optional*, defaults to False):
            Whether the network denoises latents: samples are then not clipped to the range of pixels, as DDPM's are.

    Returns:
        `DDPMScheduler` or `EDMEulerScheduler`: The scheduler.

    Raises:
        InputError: If an argument is out of range.

    Examples:
        >>> from diffusers_dp_curriculum import build_scheduler
        >>> build_scheduler("edm", prediction_type="epsilon").config.sigma_max
        80.0
    """
    NOISE_SCHEDULER.check("noise_scheduler", noise_scheduler)
    if noise_scheduler == "edm":
        EDM_SIGMA_DATA.check("edm_sigma_data", edm_sigma_data)
        EDM_SIGMA_MAX.check("edm_sigma_max", edm_sigma_max)
        return EDMEulerScheduler(
            num_train_timesteps=EDM_NUM_STEPS,
            sigma_min=EDM_SIGMA_MIN,
            sigma_max=edm_sigma_max,
            sigma_data=edm_sigma_data,
            prediction_type=prediction_type,
        )
    DDPM_NUM_STEPS.check("ddpm_num_steps", ddpm_num_steps)
    BETA_SCHEDULE.check("ddpm_beta_schedule", ddpm_beta_schedule)
    return DDPMScheduler(
        num_train_timesteps=ddpm_num_steps,
        beta_schedule=ddpm_beta_schedule,
        prediction_type=prediction_type,
        clip_sample=not latents,
    )
