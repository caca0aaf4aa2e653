"""The model card: README.md of a published pipeline, with the privacy budget at the top."""

from dataclasses import asdict
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from .config import DPCurriculumConfig


TEMPLATE = Path(__file__).with_name("model_card_template.md")
IN_WORDS = {
    "central_images_mean": "the central images (DP means)",
    "central_images_mode": "the central images (DP modes)",
    "dp_sgd": "training by DP-SGD",
}
TAGS = ["diffusers", "differential-privacy", "dp-sgd", "opacus", "image-generation"]


def make_model_card(
    privacy: dict,
    config: DPCurriculumConfig,
    network: dict,
    class_names: list[str] | None,
    has_central_images: bool,
) -> ModelCard:
    """Render the card of a finished run; nothing in it was computed on the sensitive records outside the ledger.

    Args:
        privacy (`dict`): The content of privacy.json.
        config (`DPCurriculumConfig`): The hyper-parameters, all of them public.
        network (`dict`): What was trained: name and value of each of its properties.
        class_names (`list[str]`, *optional*): None for an unconditional model.
        has_central_images (`bool`): Whether central_images.png lies beside the card.
    """
    hyper_parameters = network | {name: value for name, value in asdict(config).items() if name != "output_dir"}
    return ModelCard.from_template(
        ModelCardData(library_name="diffusers", pipeline_tag="unconditional-image-generation", tags=TAGS),
        template_path=str(TEMPLATE),
        title=f"Diffusion model under differential privacy, epsilon {privacy['epsilon']:.4g}"
        if privacy["private"]
        else "Diffusion model WITHOUT privacy",
        privacy=privacy,
        mechanisms_in_words=" and ".join(IN_WORDS[mechanism["name"]] for mechanism in privacy["mechanisms"]),
        class_names=class_names,
        has_central_images=has_central_images,
        hyper_parameters=hyper_parameters,
        guidance_scale=config.guidance_scale,
        num_inference_steps=config.num_inference_steps,
    )
