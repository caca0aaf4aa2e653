"""Records as latents: what DP-SGD trains on where an autoencoder stands between the images and the network.

This module is not a mechanism. A latent is a function of its record and of a public autoencoder alone, and as sensitive
as the record: it is in memory or in a temporary file without a name, and in no file that stays.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..arithmetic import own_arithmetic
from ..transfers import to_device
from .grouping import Units
from .image_dataset import ImageDataset
from .storage import allocate


# All batches that are encoded have this size, the last one too: libraries may choose another kernel, with other last
# bits, for a batch of another size, and a latent must not depend on how many records there are.
BATCH_SIZE = 8


class Encoder(Protocol):
    """What turns images into latents."""

    @property
    def device(self) -> torch.device:
        """The device of the images that [`encode`] takes."""
        ...

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """The latents of `(n, C, H, W)` images in [-1, 1], `(n, c, h, w)` float32, each of its image alone."""
        ...

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Channels, height and width of the latent of an image of some shape."""
        ...


@dataclass(eq=False, repr=False)  # without `repr`, so that printing it does not print records
class LatentDataset:
    """The latents of sensitive images, as DP-SGD takes records.

    Args:
        latents (`torch.Tensor`):
            `float16` of shape `(N, V, c, h, w)`: V is 1, or 2 if each mirrored image has a latent of its own.
        labels (`torch.Tensor`): `int64` of shape `(N,)`.
        units (`Units`): The units of privacy, which are those of the images.
    """

    latents: torch.Tensor
    labels: torch.Tensor
    units: Units

    def batch(self, indices: torch.Tensor, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Some of the records in the form that a diffusion model takes, each of them mirrored or not at random.

        Args:
            indices (`torch.Tensor`): The indices of the records, of any shape such as `(n,)`.
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): The device of the returned tensors.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Latents, `float32` of shape `(n, c, h, w)`, and labels, `int64` of
            shape `(n,)`.
        """
        variants = torch.randint(self.latents.shape[1], indices.shape)
        latents, labels = self.latents[indices, variants], self.labels[indices]
        return to_device(latents, device).float(), to_device(labels, device)


@own_arithmetic()
@torch.no_grad()
def encode_records(records: ImageDataset, encoder: Encoder, mirrored: bool = False) -> LatentDataset:
    """Encode every record once.

    Args:
        records (`ImageDataset`): The sensitive records.
        encoder (`Encoder`): The autoencoder, which is public.
        mirrored (`bool`, *optional*, defaults to False):
            Whether to encode each image mirrored as well: a mirrored latent is not the latent of a mirrored image.

    Returns:
        `LatentDataset`: The latents. Values beyond the range of float16 are clipped to it.

    Raises:
        StorageError: If the latents need a temporary file, and its disk is too small.
    """
    number, labels = len(records), records.labels
    shape = (number, 2 if mirrored else 1, *encoder.latent_shape(records.info.image_shape))
    latents = torch.from_numpy(allocate(shape, "float16", "The latents"))
    largest = torch.finfo(latents.dtype).max
    for indices in tqdm(torch.arange(number).split(BATCH_SIZE), desc="Encoding images", leave=False):
        images, _ = records.batch(indices, encoder.device)
        images = F.pad(images, (0, 0) * 3 + (0, BATCH_SIZE - len(images)))
        for variant in range(shape[1]):
            encoded = encoder.encode(images.flip(-1) if variant == 1 else images)[: len(indices)]
            latents[indices, variant] = encoded.nan_to_num(0.0).clamp(-largest, largest).half().cpu()
    return LatentDataset(latents, labels, records.units)
