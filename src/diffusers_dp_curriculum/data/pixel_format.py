"""From one image as its file has it to pixels of 8 bits, grey or RGB, by public settings alone."""

from dataclasses import dataclass, replace

import numpy as np
import PIL.Image
import PIL.ImageOps

from ..checks import IMAGE_CHANNELS, RESOLUTION, check_background, check_pixel_range
from .unusable import Unusable


GREY_MODES = {"1", "L", "LA", "La"}
COLOUR_MODES = {"RGB", "P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr"}
DEEP_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
DEEP_FORMATS = {"PNG", "TIFF"}  # of other formats Pillow rescales the values
# Tags of TIFF.
PHOTOMETRIC, SAMPLES_PER_PIXEL = 262, 277
WHITE_IS_ZERO = 0

OPAQUE = (255, 255)  # the least and the largest value of the alpha channel

# In files of these formats the first image is the whole one; the others are previews, depth maps or layers.
ONE_PICTURE = {"MPO", "PSD"}


@dataclass(frozen=True)
class PixelFormat:
    """The public settings by which images become pixels; none of them is measured on the records.

    Args:
        resolution (`int`, *optional*): Height and width; by default images keep their size.
        channels (`int`, *optional*): 1 for grey images, 3 for RGB; by default what the images are.
        pixel_range (`list[float]`, *optional*): The values of deep images that become black and white.
        background (`str`, *optional*): The colour behind transparent images, in words or as "#rrggbb".

    Raises:
        InputError: If a value is out of range.
    """

    resolution: int | None = None
    channels: int | None = None
    pixel_range: list[float] | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        if self.resolution is not None:
            RESOLUTION.check("resolution", self.resolution)
        if self.channels is not None:
            IMAGE_CHANNELS.check("channels", self.channels)
        check_pixel_range(self.pixel_range)
        check_background(self.background)

    def with_mode(self, mode: str | None) -> "PixelFormat":
        """The same settings with the number of channels that a column of `datasets` declares by its mode."""
        declared = {"1": 1, "L": 1, "RGB": 3}.get(mode or "")
        return self if declared is None or self.channels is not None else replace(self, channels=declared)

    def pixels_of(self, image: PIL.Image.Image) -> np.ndarray:
        """Decode and convert an opened image.

        Args:
            image (`PIL.Image.Image`): The image, which may not be loaded yet.

        Returns:
            `np.ndarray`: `uint8` of shape `(C, H, W)`.

        Raises:
            Unusable: If one of the settings is missing for the image, or does not fit it.
        """
        _check_nothing_is_dropped(image)
        if self.resolution is not None:
            # JPEG files are decoded at a fraction of their size; twice the final size loses nothing that can be seen.
            image.draft(None, (2 * self.resolution, 2 * self.resolution))
        deep_colour = _has_deep_colour(image)  # before the image is loaded, when Pillow forgets it
        image.load()
        black_and_white = self._range_of(image) if image.mode in DEEP_MODES else None
        if black_and_white is None:
            self._check_depth(image, deep_colour)
        if image.getexif().get(PIL.Image.ExifTags.Base.Orientation) is not None:
            image = PIL.ImageOps.exif_transpose(image)
        if black_and_white is not None:
            image = _in_range(image, *black_and_white)
        image = self._to_grey_or_rgb(image)
        if self.channels is not None:
            image = image.convert("L" if self.channels == 1 else "RGB")
        if self.resolution is not None and image.size != (self.resolution, self.resolution):
            image = PIL.ImageOps.fit(image, (self.resolution, self.resolution))
        return np.atleast_3d(image).transpose(2, 0, 1)

    def _check_depth(self, image: PIL.Image.Image, deep_colour: bool) -> None:
        if deep_colour and (self.pixel_range is None or list(self.pixel_range) != [0, 65535]):
            # Pillow keeps the upper 8 bits alone.
            raise Unusable(
                "of several channels with 16 bits each",
                "pass `pixel_range` 0 65535 if their values use that whole range, or save them with 8 bits a channel",
            )
        if self.pixel_range is not None and not deep_colour:
            raise Unusable(
                "with 8 bits a channel, for which `pixel_range` is not meant",
                "load them without it, or save all images with the same number of bits",
            )

    def _to_grey_or_rgb(self, image: PIL.Image.Image) -> PIL.Image.Image:
        if image.mode not in GREY_MODES | COLOUR_MODES:
            raise Unusable(f"of the mode {image.mode}", "convert them to grey or RGB")
        grey = image.mode in GREY_MODES
        if image.has_transparency_data:
            image = self._before_background(image.convert("RGBA"))
        return image.convert("L" if grey else "RGB")

    def _range_of(self, image: PIL.Image.Image) -> tuple[float, float]:
        """The values of an image of more than 8 bits that become black and white."""
        if image.format not in DEEP_FORMATS or "transparency" in image.info:
            raise Unusable(
                "with more than 8 bits a pixel that are neither plain PNG nor plain TIFF",
                "convert them to 16-bit PNG or TIFF without transparency",
            )
        if self.pixel_range is None:
            raise Unusable(
                "with more than 8 bits a pixel",
                "pass `pixel_range` with the lowest and the highest value that the device can give, such as 0 4095 or "
                "0 65535",
            )
        low, high = self.pixel_range
        if image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            return high, low  # Pillow inverts such images itself only if they have 8 bits
        return low, high

    def _before_background(self, image: PIL.Image.Image) -> PIL.Image.Image:
        if image.getchannel("A").getextrema() == OPAQUE:
            return image
        if self.background is None:
            raise Unusable("with transparent pixels", "pass `background` with the colour to put behind them")
        background = PIL.Image.new("RGBA", image.size, self.background)
        background.alpha_composite(image)
        return background


def _in_range(image: PIL.Image.Image, black: float, white: float) -> PIL.Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise Unusable("with pixels that are no numbers", "give these pixels a value")
    return PIL.Image.fromarray(np.rint(255 * np.clip((values - black) / (white - black), 0, 1)).astype(np.uint8))


def _check_nothing_is_dropped(image: PIL.Image.Image) -> None:
    """Refuse what Pillow would drop without a word: all frames but the first, and further channels."""
    if getattr(image, "is_animated", False) and image.format not in ONE_PICTURE:
        raise Unusable(
            "with several frames or pages",
            "save the one to train on as a file of its own, or each of them if each is a record",
        )
    if image.format == "TIFF" and image.tag_v2.get(SAMPLES_PER_PIXEL, 1) > len(image.getbands()):
        raise Unusable("with more channels than colours", "save the channels to train on as files of their own")


def _has_deep_colour(image: PIL.Image.Image) -> bool:
    """Whether an image that is not loaded yet stores 16 bits for each of several channels."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else None
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return isinstance(raw_mode, str) and ";16" in raw_mode and image.mode not in DEEP_MODES
