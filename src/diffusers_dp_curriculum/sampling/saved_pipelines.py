"""Loads trained pipelines, and finds their privacy.json, in a directory or on the Hub."""

from pathlib import Path

import diffusers
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..errors import HubError, InputError
from ..finite import is_finite
from ..gradients.losses import EDM_SCHEDULERS
from ..names import check_pipeline_name, is_on_hub
from .pipeline import ClassConditionalPipeline


def load_pipeline(name: str) -> diffusers.DiffusionPipeline:
    """Load a class-conditional pipeline or one of diffusers; code in the directory or repository is never run.

    Args:
        name (`str`): Directory or Hub id of a saved pipeline.

    Raises:
        InputError: If there is no pipeline of that name, it needs code of its own, or its training diverged.
        HubError: If the Hub is out of reach, and offline mode is not set.
    """
    check_pipeline_name(name)
    try:
        class_name = diffusers.DiffusionPipeline.load_config(name)["_class_name"]
    except OSError as error:
        raise InputError(
            f"{name} is neither the directory of a saved pipeline nor one on the Hub: check the name."
        ) from error
    if class_name == ["pipeline", "ClassConditionalPipeline"]:
        pipeline = ClassConditionalPipeline.from_pretrained(name)
    elif isinstance(class_name, list):
        raise InputError(f"{name} needs code of its own ({'.'.join(class_name)}): call `generate_dataset` in Python.")
    else:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(name)
    if not all(is_finite(part) for part in pipeline.components.values() if isinstance(part, torch.nn.Module)):
        raise InputError(
            f"The weights of {name} are not all finite numbers, as its training diverged: use another pipeline."
        )
    return pipeline


def autoencoder_of(pipeline: diffusers.DiffusionPipeline) -> diffusers.ModelMixin | None:
    """The autoencoder that makes images of the latents of a pipeline; None for a pipeline of pixels.

    Args:
        pipeline (`DiffusionPipeline`): The pipeline.
    """
    return getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)


def image_shape(pipeline: diffusers.DiffusionPipeline) -> tuple[int, int, int]:
    """Channels, height and width of the images that a pipeline makes.

    Args:
        pipeline (`DiffusionPipeline`): A pipeline with a `UNet2DModel` of squares.
    """
    unet, autoencoder = pipeline.unet, autoencoder_of(pipeline)
    side = unet.config.sample_size
    if autoencoder is None:
        return unet.config.in_channels, side, side
    with torch.no_grad():
        latents = torch.zeros(1, unet.config.in_channels, side, side, dtype=unet.dtype, device=autoencoder.device)
        channels, height, width = autoencoder.decode(latents).sample.shape[1:]
    return channels, height, width


def use_scheduler(pipeline: diffusers.DiffusionPipeline, name: str) -> None:
    """Replace the scheduler of a pipeline by another one that fits how the model was trained.

    Args:
        pipeline (`DiffusionPipeline`): The pipeline, which is changed in place.
        name (`str`): The class name of the new scheduler.

    Raises:
        InputError: If the model cannot be sampled with that scheduler.
    """
    candidates = EDM_SCHEDULERS if isinstance(pipeline.scheduler, EDM_SCHEDULERS) else pipeline.scheduler.compatibles
    compatible = {scheduler.__name__: scheduler for scheduler in candidates}
    if name not in compatible:
        raise InputError(f"`scheduler` is {name}: choose one of {', '.join(sorted(compatible))} here.")
    pipeline.scheduler = compatible[name].from_config(pipeline.scheduler.config)


def find_privacy_json(name: str, repo_type: str = "model") -> Path | None:
    """Find the privacy.json of a pipeline or of a data set, and download it if it is on the Hub.

    Args:
        name (`str`): Directory or Hub id.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"` for a pipeline, `"dataset"` for a data set.

    Returns:
        `Path`, *optional*: The file; None if there is none.

    Raises:
        HubError: If the Hub cannot be reached and the file is not in the local cache.
    """
    if Path(name).is_dir():
        path = Path(name, "privacy.json")
        return path if path.is_file() else None
    if not is_on_hub(name, repo_type):  # such as the digits of scikit-learn
        return None
    try:
        return Path(hf_hub_download(name, "privacy.json", repo_type=repo_type))
    except LocalEntryNotFoundError as error:
        raise HubError(f"The Hub is out of reach, and the privacy.json of {name} is only there: try again.") from error
    except EntryNotFoundError:
        return None
