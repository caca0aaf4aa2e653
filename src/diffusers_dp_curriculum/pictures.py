"""Enlarges small images, and arranges images in grids with gaps between them."""

import torch
import torch.nn.functional as F
from diffusers.utils import make_image_grid, numpy_to_pil
from PIL import Image, ImageOps


GAP = 4  # pixels around each image


def enlarge(images: torch.Tensor, size: int) -> torch.Tensor:
    """Enlarge images by bicubic interpolation; images of the wanted size are returned as they are.

    Args:
        images (`torch.Tensor`): `(B, channels, height, width)` in [0, 1].
        size (`int`): Height and width in pixels of the result.

    Returns:
        `torch.Tensor`: `(B, channels, size, size)` in [0, 1].
    """
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def image_grid(images: torch.Tensor, columns: int, height: int = 56) -> Image.Image:
    """Rows of `columns` images, each enlarged to about `height` pixels, with gaps between them.

    Args:
        images (`torch.Tensor`): `(rows * columns, channels, height, width)` in [0, 1].
        columns (`int`): Images per row.
        height (`int`, *optional*, defaults to 56): Height of each image in the grid; larger images stay as they are.
    """
    scale = max(height // images.shape[2], 1)
    size = (images.shape[3] * scale, images.shape[2] * scale)
    pictures = numpy_to_pil(images.float().cpu().permute(0, 2, 3, 1).numpy())
    cells = [
        ImageOps.expand(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC), GAP, "white")
        for picture in pictures
    ]
    return make_image_grid(cells, rows=len(cells) // columns, cols=columns)
