"""Loads the public vision model through which the frequency query looks at images."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..checks import AUTO
from ..config import DPCurriculumConfig
from ..errors import InputError
from ..files import local_path
from ..mechanisms.public_eyes import PublicEyes


LAYERS = 4  # evenly spaced, the last one among them


class VisionModelEyes(PublicEyes):
    """A vision model of transformers, with its own preprocessing as a differentiable function.

    Images are resized to the size that the model takes, as a whole, and grey ones are repeated in three channels.

    Args:
        name (`str`): Hub id or directory of a model with a preprocessor_config.json. Code in it is never run.

    Raises:
        InputError: If it cannot be used.
        HubError: If it cannot be downloaded.
    """

    def __init__(self, name: str):
        from ..vision_models import load_vision_model  # transformers takes seconds to import

        path = local_path(name)
        super().__init__("a local model" if path.is_dir() else f"{name} on the Hub")
        # Features are those of layers in between, and a pooling layer is what saved classifiers lack.
        processor, self.model = load_vision_model(str(path) if path.is_dir() else name, unused="pooler.")
        black, white = (_prepared(processor, value, name) for value in (0, 255))
        middle = (..., black.shape[-2] // 2, black.shape[-1] // 2)  # at the border there may be padding
        self.size = tuple(black.shape[-2:])
        self.register_buffer("of_black", black[middle][:, None, None])
        self.register_buffer("of_white", white[middle][:, None, None])
        self.given_name = name

    def extra_repr(self) -> str:
        """What tells this model from others besides its weights."""
        return f"size={self.size}"

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return some hidden states, `(B, C, tokens)` or `(B, C, height, width)`."""
        images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        prepared = self.of_black + (self.of_white - self.of_black) * images.expand(-1, 3, -1, -1)
        states = self.model(pixel_values=prepared, output_hidden_states=True).get("hidden_states")
        if states is None:
            raise InputError(f"{self.given_name!r} does not give its hidden states: give another `feature_extractor`.")
        layers = states[1:]  # the first one is what comes before all layers
        chosen = sorted({max(len(layers) * number // LAYERS, 1) - 1 for number in range(1, LAYERS + 1)})
        return [layers[i].transpose(1, 2) if layers[i].ndim == 3 else layers[i] for i in chosen]


def load_public_eyes(config: DPCurriculumConfig) -> PublicEyes | None:
    """Load the public model that a config names, if it names one.

    Args:
        config (`DPCurriculumConfig`): `feature_extractor` and `frequency_features` are used.

    Raises:
        InputError: If it is no vision model, or the config asks for another number of features than it has.
        HubError: If it cannot be downloaded.
    """
    if config.feature_extractor is None:
        return None
    eyes = VisionModelEyes(str(config.feature_extractor))
    if config.frequency_features not in (AUTO, eyes.num_features):
        raise InputError(
            f"`frequency_features` is {config.frequency_features}, and {config.feature_extractor} has "
            f"{eyes.num_features} features: give {AUTO} or that number, or leave `feature_extractor` out."
        )
    return eyes


def _prepared(processor: object, value: int, name: str) -> torch.Tensor:
    """What a model's own preprocessing makes of an image of one value, `(3, height, width)`."""
    image = Image.fromarray(np.full((32, 32, 3), value, np.uint8))
    prepared: torch.Tensor = processor([image], return_tensors="pt")["pixel_values"]  # type: ignore[operator]
    if prepared.ndim != 4 or prepared.shape[:2] != (1, 3):
        raise InputError(f"{name!r} takes no single RGB images: give another `feature_extractor`.")
    return prepared[0].float()
