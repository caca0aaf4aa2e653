"""Loads vision models of transformers: for measures of quality, and for features that a query looks at."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import AutoImageProcessor, AutoModel

from .errors import HubError, InputError
from .names import TIMEOUT_SECONDS


def load_vision_model(name: str, unused: str = "", instead: str = "") -> tuple[Any, torch.nn.Module]:
    """Load a vision model in float32, with its preprocessing; of a model of images and text, the image part.

    Args:
        name (`str`): Hub id or directory of a model with a preprocessor_config.json. Code in it is never run.
        unused (`str`, *optional*):
            The beginning of the names of weights that the caller does not use, which may be missing. They are 0 then.
        instead (`str`, *optional*): What else the caller takes, for messages, such as `"pixels, or "`.

    Returns:
        `tuple`: The image processor, which computes with Pillow, and the model.

    Raises:
        InputError: If it is no vision model, or its weights are incomplete.
        HubError: If it cannot be downloaded.
    """
    try:
        if not Path(name).is_dir():
            # One request first, because transformers retries for minutes before it reports that the Hub is out of
            # reach. In offline mode the cache is used.
            with contextlib.suppress(OfflineModeIsEnabled):
                HfApi().model_info(name, timeout=TIMEOUT_SECONDS)
        # The resizing of the model's training, by Pillow: the same numbers with and without torchvision.
        processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        model, loading = AutoModel.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
    except Exception as error:  # of many types: from the Hub's client, its HTTP library and transformers
        reason = f"{error}\n".splitlines()[0]
        raise (InputError if Path(name).is_dir() else HubError)(
            f"{name!r} cannot be loaded as a vision model of transformers ({reason}): give {instead}the id or "
            "directory of a model that has a preprocessor_config.json."
        ) from error
    may_be_missing = {key for key in loading["missing_keys"] if unused and key.startswith(unused)}
    if missing := set(loading["missing_keys"]) - may_be_missing:
        raise InputError(f"The weights of {name!r} lack {min(missing)}, which would be random: give another model.")
    for key in may_be_missing:
        torch.nn.init.zeros_(model.get_parameter(key))
    model = getattr(model, "vision_model", model)
    if model.main_input_name != "pixel_values":
        raise InputError(f"{name!r} takes {model.main_input_name} and no images: give a vision model.")
    return processor, model
