"""Grids of small images, enlarged and with gaps between them."""

import torch
from diffusers.utils import make_image_grid, numpy_to_pil
from PIL import Image, ImageOps


GAP = 4  # pixels around each image


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
