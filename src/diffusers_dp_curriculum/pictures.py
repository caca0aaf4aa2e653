"""Grids of small images, enlarged so that a person can see them."""

import torch
from diffusers.utils import make_image_grid, numpy_to_pil
from PIL import Image


def image_grid(images: torch.Tensor, columns: int, height: int = 64) -> Image.Image:
    """Rows of `columns` images, each enlarged to `height` pixels without smoothing.

    Args:
        images (`torch.Tensor`): `(rows * columns, channels, height, width)` in [0, 1].
        columns (`int`): Images a row.
        height (`int`, *optional*, defaults to 64): Height of each image in the grid; larger images stay as they are.
    """
    scale = max(height // images.shape[2], 1)
    size = (images.shape[3] * scale, images.shape[2] * scale)
    pictures = numpy_to_pil(images.float().cpu().permute(0, 2, 3, 1).numpy())
    return make_image_grid(
        [picture.resize(size, Image.Resampling.NEAREST).convert("RGB") for picture in pictures],
        rows=len(pictures) // columns,
        cols=columns,
    )
