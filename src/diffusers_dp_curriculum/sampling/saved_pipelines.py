"""Trained pipelines by their directory or their name on the Hub."""

from pathlib import Path

import diffusers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from ..errors import HubError, InputError
from ..gradients.losses import EDM_SCHEDULERS
from .pipeline import ClassConditionalPipeline


def load_pipeline(name: str) -> diffusers.DiffusionPipeline:
    """Load a class-conditional or a stock pipeline, without ever running code from where it is stored."""
    try:
        class_name = diffusers.DiffusionPipeline.load_config(name)["_class_name"]
    except OSError as error:
        raise InputError(
            f"{name} is neither the directory of a saved pipeline nor one on the Hub: check it."
        ) from error
    if class_name == ["pipeline", "ClassConditionalPipeline"]:
        return ClassConditionalPipeline.from_pretrained(name)
    if isinstance(class_name, list):
        raise InputError(f"{name} needs code of its own ({'.'.join(class_name)}): call `generate_dataset` in Python.")
    return diffusers.DiffusionPipeline.from_pretrained(name)


def use_scheduler(pipeline: diffusers.DiffusionPipeline, name: str) -> None:
    """Swap in a scheduler that the model can be sampled with."""
    known = EDM_SCHEDULERS if isinstance(pipeline.scheduler, EDM_SCHEDULERS) else pipeline.scheduler.compatibles
    compatible = {scheduler.__name__: scheduler for scheduler in known}
    if name not in compatible:
        raise InputError(f"`scheduler` is {name}: choose one of {', '.join(sorted(compatible))} here.")
    pipeline.scheduler = compatible[name].from_config(pipeline.scheduler.config)


def find_privacy_json(name: str, repo_type: str = "model") -> Path | None:
    """The privacy.json of a pipeline or, with the type "dataset", of a data set; None if it has none."""
    if Path(name).is_dir():
        path = Path(name, "privacy.json")
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, "privacy.json", repo_type=repo_type))
    except LocalEntryNotFoundError as error:
        raise HubError(f"The Hub is out of reach, and the privacy.json of {name} is there alone: try again.") from error
    except (EntryNotFoundError, RepositoryNotFoundError):  # the digits, for instance, are in no repository
        return None
