"""Renders the model card: README.md of a published pipeline, with the privacy budget at the top."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData

from ..config import DPCurriculumConfig
from ..data.dataset_info import DatasetInfo
from ..privacy.accounting import round_up
from ..privacy.statement import PrivacyStatement
from .cards import SECTION, as_text, mechanism_table, privacy_claim, unit_in_words, unit_limits


TEMPLATE = Path(__file__).parent / "templates" / "model_card_template.md"
IN_WORDS = {
    "central_images_mean": "the central images (DP means)",
    "central_images_mode": "the central images (DP modes)",
    "frequency_features": "the frequency features",
    "perceptual_features": "the features of a public model",
    "dp_sgd": "training by DP-SGD",
}
TAGS = ["diffusers", "differential-privacy", "opacus", "image-generation"]
# The fields of a noise scheduler's config that the card lists, if the scheduler has them.
SCHEDULER_CARD_FIELDS = ("prediction_type", "beta_schedule", "sigma_data", "sigma_min", "sigma_max")
REPO_ID_TO_COME = "PATH_OR_REPO_ID"  # a placeholder that the push replaces
LOADED_FROM = re.compile(r'(from_pretrained|load_dataset)\("[^"]*"')
HUB_DATASET_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def make_model_card(
    privacy: PrivacyStatement,
    config: DPCurriculumConfig,
    pipeline: DiffusionPipeline,
    info: DatasetInfo,
    mixed_precision: str,
    stages: Collection[str],
    trained_part: str,
    started_from: str | None = None,
    base_model: str | None = None,
    eyes: str | None = None,
    encoded_by: str | None = None,
) -> ModelCard:
    """Render the card of a finished run; everything in it is public or comes from releases in the ledger.

    Args:
        privacy (`PrivacyStatement`): The content of privacy.json.
        config (`DPCurriculumConfig`): The hyper-parameters, all of them public.
        pipeline (`DiffusionPipeline`): The trained pipeline, with `unet` and `scheduler`.
        info (`DatasetInfo`): The public description of the data set.
        mixed_precision (`str`): Accelerate's mixed precision of the run: `"no"`, `"bf16"` or `"fp16"`.
        stages (`Collection[str]`): The names of the warm-up stages, whose pictures are published.
        trained_part (`str`): In words, which parameters of the network DP-SGD has trained.
        started_from (`str`, *optional*): What training started from, in words; None for random weights.
        base_model (`str`, *optional*): The id on the Hub of the model that training started from.
        eyes (`str`, *optional*): The public model whose features were queried, in words; None for random features.
        encoded_by (`str`, *optional*): Where the autoencoder of its latents comes from, in words; None for pixels.
    """
    class_names = None if info.class_names is None else list(info.class_names)
    metadata = card_metadata(config, TAGS, base_model)
    if config.max_train_steps > 0:
        metadata.tags.append("dp-sgd")
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        title=f"Diffusion model under differential privacy, epsilon {round_up(privacy.epsilon)}"
        if privacy.private
        else "Diffusion model WITHOUT privacy",
        statement=privacy_claim(
            privacy, "This model", "its training data", class_names is not None, mechanisms_in_words(privacy)
        ),
        unit_in_words=unit_in_words(privacy.unit, class_names is not None),
        unit_limits=unit_limits(privacy.unit),
        privacy=privacy,
        mechanisms=mechanism_table(privacy),
        epsilon=round_up(privacy.epsilon),
        delta=round_up(privacy.delta),
        class_names=None if class_names is None else [as_text(name) for name in class_names],
        example_labels=example_labels_of(class_names),
        stages=list(stages),
        dataset_name=None if config.hub_dataset_name is None else as_text(config.hub_dataset_name),
        trained_part=as_text(trained_part),
        hyper_parameters=describe_network(pipeline, info, mixed_precision)
        | config.hyper_parameters()
        | {"trainable": as_text(config.trainable)},
        guidance_scale=config.guidance_scale,
        num_inference_steps=config.num_inference_steps,
        churn=f", s_churn={config.s_churn}, s_tmin={config.s_tmin}, s_tmax={config.s_tmax}" if config.s_churn else "",
        started_from=started_from,
        eyes=eyes,
        encoded_by=encoded_by,
        repo_id=REPO_ID_TO_COME,
    )


def card_metadata(config: DPCurriculumConfig, tags: list[str], base_model: str | None) -> ModelCardData:
    """What the Hub reads of a model's card: its license, the model that it started from, and its images.

    Args:
        config (`DPCurriculumConfig`): The options of the card are used.
        tags (`list[str]`): The tags, which are copied.
        base_model (`str`, *optional*): The id on the Hub of the model that training started from.
    """
    metadata = ModelCardData(library_name="diffusers", pipeline_tag="unconditional-image-generation", tags=list(tags))
    metadata.license = config.hub_license
    metadata.base_model = base_model
    if config.hub_dataset_name and HUB_DATASET_ID.fullmatch(config.hub_dataset_name):
        metadata.datasets = [config.hub_dataset_name]
    return metadata


def describe_network(pipeline: DiffusionPipeline, info: DatasetInfo, mixed_precision: str) -> dict[str, Any]:
    """The properties of network and noise scheduler that the card lists, by name."""
    scheduler = pipeline.scheduler
    return {
        "resolution": info.resolution,
        "channels": info.num_channels,
        **_describe_latents(pipeline),
        "parameters": f"{pipeline.unet.num_parameters():,}",
        "noise_scheduler": type(scheduler).__name__,
        **{name: value for name, value in scheduler.config.items() if name in SCHEDULER_CARD_FIELDS},
        "mixed_precision": mixed_precision,
    }


def _describe_latents(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """The autoencoder of a pipeline and the size of its latents; nothing for a pipeline of pixels."""
    autoencoder = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
    if autoencoder is None:
        return {}
    size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    return {"autoencoder": type(autoencoder).__name__, "latents": f"{size}x{size}x{channels}"}


def mechanisms_in_words(privacy: PrivacyStatement) -> str:
    """List in words what the budget was spent on: each kind of mechanism once, and the number of previous runs."""
    names = dict.fromkeys(mechanism.name for mechanism in privacy.runs[0].mechanisms)
    spent_on = [IN_WORDS.get(name, as_text(name)) for name in names]
    if (previous := privacy.num_previous_runs) > 0:
        spent_on.append(f"{previous} previous run{'s' * (previous > 1)}")
    return " and ".join([", ".join(spent_on[:-1]), spent_on[-1]] if len(spent_on) > 1 else spent_on)


def with_repo_id(card: str, repo_id: str) -> str:
    """Put the id of the repository into the code snippets in the generated sections of a card."""
    return SECTION.sub(lambda section: LOADED_FROM.sub(rf'\1("{repo_id}"', section[0]), card)


def example_labels_of(class_names: list[str] | None) -> str:
    """Choose two classes for the code snippet, by name if the names need no escaping, else by index."""
    names = class_names[:2] if class_names else []
    if names and names[0] != "0" and all(as_text(name) == name for name in names):
        return repr(names)
    return "[0, 1]" if len(names) > 1 else "[0, 0]"
