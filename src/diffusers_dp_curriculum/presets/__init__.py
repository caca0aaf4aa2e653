"""Presets: files with values for the options of a run. Those of published recipes name the source of each value."""

from importlib.resources import files
from typing import Any

import yaml

from ..errors import InputError


def preset_names() -> list[str]:
    """The names of all presets, sorted."""
    names = [entry.name for entry in files(__name__).iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """Load the options of a preset, named as the flags of `dp-curriculum train`.

    Args:
        name (`str`): The name of the preset, such as `"digits"`.

    Returns:
        `dict[str, Any]`: Values for fields of [`DPCurriculumConfig`], and for arguments of [`build_unet`],
        [`build_scheduler`] and [`load_image_dataset`].

    Raises:
        InputError: If there is no preset of that name; the message lists all names.

    Examples:
        >>> from diffusers_dp_curriculum import load_preset
        >>> load_preset("digits")["max_train_steps"]
        100
    """
    if name not in preset_names():
        raise InputError(f'There is no preset "{name}": choose one of {", ".join(preset_names())}.')
    preset: dict[str, Any] = yaml.safe_load((files(__name__) / f"{name}.yaml").read_text(encoding="utf-8"))
    return preset
