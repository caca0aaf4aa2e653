"""What a finished run publishes: the pipeline, its statement about privacy, its card and pictures."""

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

    The statement about privacy is written last, as the sign that everything else is there. Of an existing card the
    sections that its owner wrote are kept.

    Args:
        paths (`RunPaths`): Where the run is.
        pipeline (`DiffusionPipeline`): The trained pipeline.
        privacy (`PrivacyStatement`): What privacy.json is to say.
        card (`ModelCard`): The model card.
        pictures (`Mapping[str, Image]`): The published pictures by what they show, such as `"samples"`.
    """
    paths.privacy_json.unlink(missing_ok=True)
    pipeline.unet.register_to_config(_name_or_path="")  # a path on this machine is not published
    pipeline.save_pretrained(paths.output_dir)
    for name, picture in pictures.items():
        picture.save(paths.picture(name))
    existing = paths.card.read_text(encoding="utf-8") if paths.card.is_file() else None
    paths.card.write_text(card.content if existing is None else update(existing, card.content), encoding="utf-8")
    partial = paths.private / paths.privacy_json.name
    partial.write_text(privacy.to_json(), encoding="utf-8")
    partial.rename(paths.privacy_json)
