"""The interface of a public vision model through which a query looks at images."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError


BATCH_SIZE = 50  # images that pass through the model at a time
MOST_MIXING = 1e-3  # rounding is below it


class PublicEyes(nn.Module):
    """A public vision model, which makes features of images; it must have learned nothing from the records.

    A subclass has a `forward`. The model is never trained, and runs in evaluation mode wherever it is used. What it
    makes of an image must follow from that image alone.

    Args:
        name (`str`): What is published of the model, such as `"facebook/dinov2-base on the Hub"`; never a path.

    Examples:
        >>> from torch import nn
        >>> from diffusers_dp_curriculum import PublicEyes
        >>> class Convolutions(PublicEyes):
        ...     def __init__(self):
        ...         super().__init__("two convolutions of somebody")
        ...         self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, stride=2)
        ...
        ...     def forward(self, images):
        ...         fine = self.first(images.expand(-1, 3, -1, -1)).relu()
        ...         return [fine, self.second(fine).relu()]
        >>> Convolutions().num_features
        48
    """

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    @abstractmethod
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Look at images; differentiable.

        Args:
            images (`torch.Tensor`): `(B, channels, height, width)` float32 in [0, 1], with 1 or 3 channels.

        Returns:
            `list[torch.Tensor]`: What each of some layers makes of the images, `(B, C)` or `(B, C, ...)`.
        """

    @property
    def assumption(self) -> str:
        """`str`: What a privacy statement assumes of the model."""
        return f"the model whose features are queried, {self.name}, which has learned nothing from these records"

    @property
    def device(self) -> torch.device:
        """`torch.device`: Where the model is."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def frozen(self) -> "PublicEyes":
        """The model in evaluation mode, in which it keeps nothing of a batch, and without gradients of its weights."""
        return self.eval().requires_grad_(False)

    def layers(self, images: torch.Tensor) -> list[torch.Tensor]:
        """What each layer makes of images, averaged over space: a list of `(B, C)`.

        Args:
            images (`torch.Tensor`): `(B, channels, height, width)` float32 in [0, 1], where the model is.
        """
        maps = self.frozen()(images)
        return [layer.flatten(2).mean(dim=2) if layer.ndim > 2 else layer for layer in maps]

    @cached_property
    def num_features(self) -> int:
        """`int`: D, twice the number of channels of all layers, as features have a first and a second moment.

        Raises:
            InputError: If the model has features of an image that depend on the other images of its batch.
        """
        images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(self.device)
        with torch.no_grad():
            alone, together = (moments(self.layers(some)) for some in (images[:1], images))
        if not (alone[0] - together[0]).norm() < MOST_MIXING:
            raise InputError(
                f"The features that {self.name} has of an image depend on the other images of a batch: give a model "
                "that takes each image by itself."
            )
        return together.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """`str`: A checksum of all weights and buffers and of `extra_repr`, which tells this model from others."""
        checksum = hashlib.sha256(self.extra_repr().encode())
        for name, tensor in sorted(self.state_dict().items()):
            checksum.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            checksum.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return checksum.hexdigest()


def moments(layers: Sequence[torch.Tensor]) -> torch.Tensor:
    """The features z(x) of images, `(B, D)`, of which every row has an L2 norm of at most 1, whatever the layers are.

    The first half are the layers, each divided by its norm, one after another; the second half are the squares of the
    first, divided by their norm (DP-MEPF, Harder et al., TMLR 2023, arXiv:2205.12900). Both halves have the norm
    2^(-1/2). A layer of zeros stays zero.

    Args:
        layers (`Sequence[torch.Tensor]`): What each layer makes of the images, `(B, C)`.
    """
    first = torch.cat([F.normalize(layer, dim=1) for layer in layers], dim=1) / len(layers) ** 0.5
    return torch.cat([first, F.normalize(first.square(), dim=1)], dim=1) / 2**0.5
