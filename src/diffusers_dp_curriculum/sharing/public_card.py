"""Renders the card of a model that was trained on public images without privacy."""

from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from ..config import PRETRAINING_OPTIONS, DPCurriculumConfig
from ..data.dataset_info import DatasetInfo
from .cards import as_text
from .model_card import REPO_ID_TO_COME, card_metadata, describe_network, example_labels_of


TEMPLATE = Path(__file__).parent / "templates" / "public_model_card_template.md"
TAGS = ["diffusers", "image-generation"]


def make_public_card(
    config: DPCurriculumConfig,
    pipeline: DiffusionPipeline,
    info: DatasetInfo,
    mixed_precision: str,
    started_from: str | None = None,
    base_model: str | None = None,
) -> ModelCard:
    """Render the card of a model of public images, which says that nothing about it is private.

    Args:
        config (`DPCurriculumConfig`): The hyper-parameters; those of training on public images are listed.
        pipeline (`DiffusionPipeline`): The trained pipeline, with `unet` and `scheduler`.
        info (`DatasetInfo`): The description of the public images.
        mixed_precision (`str`): Accelerate's mixed precision of the run: `"no"`, `"bf16"` or `"fp16"`.
        started_from (`str`, *optional*): What training started from, in words; None for random weights.
        base_model (`str`, *optional*): The id on the Hub of the model that training started from.
    """
    class_names = None if info.class_names is None else list(info.class_names)
    parameters = {name: value for name, value in config.hyper_parameters().items() if name in PRETRAINING_OPTIONS}
    return ModelCard.from_template(
        card_metadata(config, TAGS, base_model),
        template_path=str(TEMPLATE),
        num_images=info.num_units,
        class_names=None if class_names is None else [as_text(name) for name in class_names],
        example_labels=example_labels_of(class_names),
        dataset_name=None if config.hub_dataset_name is None else as_text(config.hub_dataset_name),
        hyper_parameters=describe_network(pipeline, info, mixed_precision) | parameters,
        guidance_scale=config.guidance_scale,
        num_inference_steps=config.num_inference_steps,
        started_from=started_from,
        repo_id=REPO_ID_TO_COME,
    )
