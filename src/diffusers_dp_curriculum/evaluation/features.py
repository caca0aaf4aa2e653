"""Feature extractors for comparing images: pixels, FID's Inception network, or any vision model of transformers.

A feature extractor is a module that maps `uint8` images of shape `(N, C, H, W)` to features of shape `(N, D)`.
"""

import importlib.util
import pickle
import urllib.error
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchmetrics.image.fid import NoTrainInceptionV3
from tqdm.auto import tqdm

from ..errors import HubError, InputError
from ..vision_models import load_vision_model


BATCH_SIZE = 64
MAX_PIXELS = 32  # per side; with more, the covariance would not fit into memory
INCEPTION_WEIGHTS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


def load_feature_extractor(name: str, inception_weights: str | Path | None = None) -> nn.Module:
    """Load a feature extractor by its name.

    Args:
        name (`str`):
            `"pixels"`, `"inception"` (the network of FID, by torchmetrics and torch-fidelity), or a vision model of
            transformers: its id on the Hub, such as `facebook/dinov2-large`, or its directory.
        inception_weights (`str` or `Path`, *optional*):
            The file of Inception's weights; by default they are downloaded and kept in PyTorch's cache.

    Returns:
        `nn.Module`: Maps `uint8` images of shape `(N, C, H, W)` to features of shape `(N, D)`.

    Raises:
        InputError: If a package or file is missing, or the weights are incomplete.
        HubError: If the model or the weights cannot be downloaded.
    """
    if name == "pixels":
        return Pixels()
    if name == "inception":
        return Inception(inception_weights)
    return VisionModel(name)


@torch.no_grad()
def extract_features(extractor: nn.Module, images: torch.Tensor, description: str | None = None) -> torch.Tensor:
    """Extract the features of images, on a GPU if there is one.

    Args:
        extractor (`nn.Module`): From [`load_feature_extractor`], or a module of your own.
        images (`torch.Tensor`): `uint8` of shape `(N, C, H, W)`, with 1 or 3 channels.
        description (`str`, *optional*): Title of the progress bar; without it there is none.

    Returns:
        `torch.Tensor`: `float32` of shape `(N, D)`, on the CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor = extractor.eval().to(device)
    batches = tqdm(images.split(BATCH_SIZE), desc=description, leave=False, disable=description is None)
    return torch.cat([extractor(batch.to(device)).float().cpu() for batch in batches])


class Pixels(nn.Module):
    """Pixels in [0, 1] as features; images of more than 32 pixels per side are averaged down to 32."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features of shape `(N, channels * side * side)`."""
        images = images.float() / 255
        if images.shape[-1] > MAX_PIXELS:
            images = F.adaptive_avg_pool2d(images, MAX_PIXELS)
        return images.flatten(1)


def has_torch_fidelity() -> bool:
    """Whether torch-fidelity is installed, which has the Inception network of FID."""
    return importlib.util.find_spec("torch_fidelity") is not None


class Inception(nn.Module):
    """The 2,048 features of FID: torch-fidelity's network, with the resizing of the original implementation."""

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        if not has_torch_fidelity():
            raise InputError(
                'FID needs the package torch-fidelity: install it (`pip install ".[fid]"`), or compare by other '
                "features, such as pixels or facebook/dinov2-base."
            )
        if weights is not None:
            _check_weights(Path(weights))
        try:
            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights and str(weights), False)
        except (urllib.error.URLError, OSError) as error:
            raise HubError(
                f"The weights of Inception cannot be fetched ({error}): fetch {INCEPTION_WEIGHTS} elsewhere and pass "
                "the file as `inception_weights`."
            ) from error
        except RuntimeError as error:  # keys or shapes that do not match
            raise InputError(
                f"{weights} does not hold the weights of FID's Inception: fetch {INCEPTION_WEIGHTS}."
            ) from error

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features of shape `(N, 2048)`."""
        return self.network(_to_rgb(images))


def _check_weights(path: Path) -> None:
    """Refuse a file that holds anything but tensors, because torch-fidelity would unpickle it."""
    if not path.is_file():
        raise InputError(f"{path} is not a file: pass the file of Inception's weights, from {INCEPTION_WEIGHTS}.")
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} does not hold PyTorch weights alone: fetch {INCEPTION_WEIGHTS}.") from error


class VisionModel(nn.Module):
    """The pooled output of a vision model of transformers; of a model of images and text, only the image part is used.

    Args:
        name (`str`): Hub id or directory of a model with a preprocessor_config.json. Code in it is never run.
    """

    def __init__(self, name: str):
        super().__init__()
        self.processor, self.model = load_vision_model(name, instead="pixels, inception, or ")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features of shape `(N, hidden size)`."""
        pictures = _to_rgb(images).permute(0, 2, 3, 1).cpu().numpy()
        inputs = self.processor(list(map(Image.fromarray, pictures)), return_tensors="pt").to(images.device)
        outputs = self.model(**inputs)
        pooled = outputs.get("pooler_output")
        if pooled is None:
            hidden = outputs.last_hidden_state
            pooled = hidden.mean(dim=1 if hidden.ndim == 3 else (2, 3))
        return pooled.flatten(1)


def _to_rgb(images: torch.Tensor) -> torch.Tensor:
    return images.expand(-1, 3, -1, -1)
