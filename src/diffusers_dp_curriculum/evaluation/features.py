"""What images are compared by: their pixels, the standard Inception network, or any vision model of transformers.

A feature extractor is a module that maps `uint8` images of shape `(N, C, H, W)` to features of shape `(N, D)`.
"""

import contextlib
import importlib.util
import pickle
import urllib.error
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from PIL import Image
from torch import nn
from torchmetrics.image.fid import NoTrainInceptionV3
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel

from ..data.sources import HUB_TIMEOUT_SECONDS
from ..errors import HubError, InputError


BATCH_SIZE = 64
MAX_PIXELS = 32  # a side; the covariance of more would not fit into memory
INCEPTION_WEIGHTS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


def load_feature_extractor(name: str, inception_weights: str | Path | None = None) -> nn.Module:
    """The feature extractor of a name.

    Args:
        name (`str`):
            `"pixels"`, `"inception"` (the network of FID, by torchmetrics and torch-fidelity), or a vision model of
            transformers: its id on the Hub or the directory it was saved in, `facebook/dinov2-large` for instance.
        inception_weights (`str` or `Path`, *optional*):
            The file of Inception's weights; fetched by default, and kept in PyTorch's cache.

    Raises:
        InputError: If there is no such model, or it cannot be loaded whole.
    """
    if name == "pixels":
        return Pixels()
    if name == "inception":
        return Inception(inception_weights)
    return VisionModel(name)


@torch.no_grad()
def extract_features(extractor: nn.Module, images: torch.Tensor, description: str | None = None) -> torch.Tensor:
    """The features of images, on a GPU if there is one.

    Args:
        extractor (`nn.Module`): As [`load_feature_extractor`] makes them, or one of your own.
        images (`torch.Tensor`): `uint8` of shape `(N, C, H, W)`, with 1 or 3 channels.
        description (`str`, *optional*): Of the progress bar; by default there is none.

    Returns:
        `torch.Tensor`: `float32` of shape `(N, D)`, on the CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor = extractor.eval().to(device)
    batches = tqdm(images.split(BATCH_SIZE), desc=description, leave=False, disable=description is None)
    return torch.cat([extractor(batch.to(device)).float().cpu() for batch in batches])


class Pixels(nn.Module):
    """The pixels in [0, 1], averaged over squares until there are at most 32 a side."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(N, channels * side * side)`."""
        images = images.float() / 255
        if images.shape[-1] > MAX_PIXELS:
            images = F.adaptive_avg_pool2d(images, MAX_PIXELS)
        return images.flatten(1)


def has_torch_fidelity() -> bool:
    """Whether there is a torch-fidelity to take the Inception network from."""
    return importlib.util.find_spec("torch_fidelity") is not None


class Inception(nn.Module):
    """The 2,048 features of FID: torch-fidelity's network, with the resizing of the original."""

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
        """`(N, 2048)`."""
        return self.network(_to_rgb(images))


def _check_weights(path: Path) -> None:
    """torch-fidelity would unpickle anything; a file of weights has tensors alone."""
    if not path.is_file():
        raise InputError(f"{path} is not a file: pass that of Inception's weights, from {INCEPTION_WEIGHTS}.")
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"{path} is not a file of PyTorch weights and nothing else: fetch {INCEPTION_WEIGHTS}."
        ) from error


class VisionModel(nn.Module):
    """The pooled output of a vision model of transformers; the image half of a model of images and text.

    Args:
        name (`str`): Its id on the Hub, or its directory; with preprocessor_config.json. Code of its own is not run.
    """

    def __init__(self, name: str):
        super().__init__()
        try:
            if not Path(name).is_dir():
                # One request first, because transformers retries for minutes before it says that the Hub is out of
                # reach. Who has chosen to be offline is served from the cache.
                with contextlib.suppress(OfflineModeIsEnabled):
                    HfApi().model_info(name, timeout=HUB_TIMEOUT_SECONDS)
            # Resizing as the model had it in training, by Pillow: the same numbers with and without torchvision.
            self.processor = AutoImageProcessor.from_pretrained(name, backend="pil")
            model, loading = AutoModel.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
        except Exception as error:  # the Hub's client, its HTTP library and transformers each raise their own
            reason = f"{error}\n".splitlines()[0]
            raise (InputError if Path(name).is_dir() else HubError)(
                f"{name!r} cannot be loaded as a vision model of transformers ({reason}): pass pixels, inception, or "
                "the id or directory of a model that has a preprocessor_config.json."
            ) from error
        if loading["missing_keys"]:
            raise InputError(
                f"The weights of {name!r} lack {min(loading['missing_keys'])}, which would be random: pass another "
                "model."
            )
        self.model = getattr(model, "vision_model", model)
        if self.model.main_input_name != "pixel_values":
            raise InputError(f"{name!r} takes {self.model.main_input_name} and no images: pass a vision model.")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(N, hidden size)`."""
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
