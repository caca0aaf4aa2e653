"""Writes what a finished run publishes: the pipeline, privacy.json, the model card and pictures."""

from collections.abc import Mapping

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image

from ..privacy.statement import PrivacyStatement
from ..run_paths import RunPaths
from .cards import update


def write_artifact(
    paths: RunPaths,
    pipeline: DiffusionPipeline,
    privacy: PrivacyStatement,
    card: ModelCard,
    pictures: Mapping[str, Image.Image],
) -> None:
    """Write what may be published into the directory of a run.

    privacy.json is written last, as a sign that all other files are complete. Text that people wrote into an existing
    card is kept.

    Args:
        paths (`RunPaths`): The paths of the run.
        pipeline (`DiffusionPipeline`): The trained pipeline.
        privacy (`PrivacyStatement`): The content of privacy.json.
        card (`ModelCard`): The model card.
        pictures (`Mapping[str, Image]`): The published pictures by their names, such as `"samples"`.
    """
    paths.privacy_json.unlink(missing_ok=True)
    write_pipeline(paths, pipeline, card, pictures)
    partial = paths.private / paths.privacy_json.name
    partial.write_text(privacy.to_json(), encoding="utf-8")
    partial.rename(paths.privacy_json)


def write_pipeline(
    paths: RunPaths, pipeline: DiffusionPipeline, card: ModelCard, pictures: Mapping[str, Image.Image]
) -> None:
    """Write a pipeline, its card and its pictures; text that people wrote into an existing card is kept.

    Args:
        paths (`RunPaths`): The paths of the run.
        pipeline (`DiffusionPipeline`): The trained pipeline.
        card (`ModelCard`): The model card.
        pictures (`Mapping[str, Image]`): The pictures by their names, such as `"samples"`.
    """
    pipeline.unet.register_to_config(_name_or_path="")  # do not publish a path on this machine
    pipeline.save_pretrained(paths.output_dir)
    for name, picture in pictures.items():
        picture.save(paths.picture(name))
    existing = paths.card.read_text(encoding="utf-8") if paths.card.is_file() else None
    paths.card.write_text(card.content if existing is None else update(existing, card.content), encoding="utf-8")
