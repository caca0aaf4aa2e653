"""Tiny vision models of transformers, saved with their preprocessing."""

import json

from transformers import Dinov2Config, Dinov2Model


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
PATCHES = {"image_size": 16, "patch_size": 8}
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 16, "width": 16},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
}


def tiny_dinov2(**options):
    return Dinov2Model(Dinov2Config(**{**TINY, **PATCHES, **options}))


def save_vision_model(model, directory, **preprocessor):
    """Write a model as transformers does, with a preprocessor_config.json, and return its directory."""
    model.eval().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, **preprocessor}))
    return str(directory)
