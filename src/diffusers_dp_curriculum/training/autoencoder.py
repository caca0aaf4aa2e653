"""A public autoencoder between the images and the network: the network denoises latents, and the pipeline decodes them.

The autoencoder is frozen, and assumed to be public: it has learned nothing from the records. So a latent is a function
of its record alone, and what the mechanisms release about pixels can be encoded afterwards, as post-processing.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin, VQModel

from ..checks import IMAGE_CHANNELS
from ..config import DPCurriculumConfig
from ..data.dataset_info import DatasetInfo
from ..data.silence import no_messages
from ..errors import InputError, first_line
from ..files import local_path
from ..names import check_autoencoder_name, no_autoencoder, public_name
from .adaptation import adapt_autoencoder
from .pretrained_files import (
    AUTOENCODER_PARTS,
    download_descriptions,
    download_weights,
    load_weights,
    read_json,
    whole_config,
)


KINDS: dict[str, type[ModelMixin]] = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny, VQModel)}
SMALLEST_LATENTS = 4  # height and width: below, hardly any place is left in which images could differ


@dataclass(frozen=True)
class Autoencoder:
    """A loaded autoencoder, frozen, for the images of one data set.

    Args:
        model (`AutoencoderKL`, `AutoencoderTiny` or `VQModel`): The autoencoder, which takes the images' channels.
        found (`FoundAutoencoder`): Where it comes from.
        image_info (`DatasetInfo`): The public description of the data set.
    """

    model: ModelMixin
    found: "FoundAutoencoder"
    image_info: DatasetInfo

    @cached_property
    def latent_info(self) -> DatasetInfo:
        """`DatasetInfo`: The description of the data set with the channels and the size of the latents."""
        return self.found.latent_info(self.image_info)

    @property
    def device(self) -> torch.device:
        """`torch.device`: The device of the images that [`encode`] takes."""
        device: torch.device = self.model.device
        return device

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """The latents of images, scaled by the scaling factor of the config; nothing in them is random.

        Args:
            images (`torch.Tensor`): `(n, C, H, W)` in [-1, 1].

        Returns:
            `torch.Tensor`: `(n, c, h, w)`, the mode of the posterior for an `AutoencoderKL`.
        """
        scale, shift = scale_and_shift(self.model.config)
        return (_encoded(self.model, images) - shift) * scale

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Channels, height and width of the latent of an image.

        Args:
            image_shape (`tuple[int, int, int]`): Channels, height and width of the image.
        """
        _, height, width = image_shape
        return self.found.latent_channels, height // self.found.factor, width // self.found.factor

    def checksum(self) -> str:
        """A checksum of all weights: a run is resumed with the autoencoder that it was started with."""
        checksum = hashlib.blake2b(digest_size=16)
        for name, tensor in self.model.state_dict().items():
            checksum.update(name.encode())
            checksum.update(tensor.contiguous().cpu().numpy())
        return checksum.hexdigest()

    def bytes_of(self, num_records: int, config: DPCurriculumConfig) -> int:
        """The memory of the latents of all records, two bytes a number.

        Args:
            num_records (`int`): The number of records.
            config (`DPCurriculumConfig`): With `random_flip`, each mirrored image has a latent of its own.
        """
        return 2 * num_records * math.prod(self.latent_info.image_shape) * (2 if config.random_flip else 1)

    def describe(self, num_bytes: int) -> str:
        """The line of the plan about the latents: their size, and what they save.

        Args:
            num_bytes (`int`): The memory of all latents.
        """
        image, latent = self.image_info, self.latent_info
        fewer = math.prod(image.image_shape) / math.prod(latent.image_shape)
        return (
            f"{_size(latent)} in place of {_size(image)}, {fewer:.3g} times fewer numbers for the network; "
            f"{math.ceil(num_bytes / 2**20)} MiB in all, by the {type(self.model).__name__} of {self.found.name}"
        )


@dataclass(frozen=True)
class FoundAutoencoder:
    """An autoencoder that was found and can be used, before its weights are loaded.

    Args:
        name (`str`): The directory or Hub id as it was given; never published, since it may be a path.
        hub_id (`str`, *optional*): The id of the repository on the Hub; None for a directory.
        directory (`Path`): The directory of the autoencoder.
        config (`dict`): The config of the autoencoder, with all defaults.
        kind (`type`): Its class.
    """

    name: str
    hub_id: str | None
    directory: Path
    config: dict[str, Any]
    kind: type[ModelMixin]

    @property
    def in_words(self) -> str:
        """`str`: What is published of where it comes from."""
        return public_name(self.hub_id)

    @property
    def assumption(self) -> str:
        """`str`: What a privacy statement assumes of it."""
        return f"the autoencoder, that of {self.in_words}, which has learned nothing from these records"

    @property
    def factor(self) -> int:
        """`int`: How many times smaller height and width become."""
        levels = self.config.get("encoder_block_out_channels") or self.config["block_out_channels"]
        return int(2 ** (len(levels) - 1))

    @property
    def latent_channels(self) -> int:
        """`int`: The channels of a latent."""
        return int(self.config.get("vq_embed_dim") or self.config["latent_channels"])

    def latent_info(self, info: DatasetInfo) -> DatasetInfo:
        """The description of a data set with the channels and the size of its latents, in which a network sees it.

        Args:
            info (`DatasetInfo`): The description of the data set.

        Raises:
            InputError: If the autoencoder does not take such images, or their latents are too small.
        """
        channels, factor, side = self.config["in_channels"], self.factor, info.resolution
        if info.num_channels > channels:
            raise InputError(
                f"The autoencoder of {self.name} takes grey images alone, and the images are in colour: load the "
                "images with `channels` 1."
            )
        if side % factor:
            raise InputError(
                f"The autoencoder of {self.name} makes images {factor} times smaller, and {side} pixels cannot be "
                f"divided by that: load the images with a `resolution` that is a multiple of {factor}."
            )
        if side // factor < SMALLEST_LATENTS:
            raise InputError(
                f"The autoencoder of {self.name} leaves {side // factor}x{side // factor} of images of {side} pixels, "
                f"too little for a network: load the images with a `resolution` of at least "
                f"{SMALLEST_LATENTS * factor}, or leave out the autoencoder."
            )
        wanted = (self.latent_channels, side // factor, side // factor), (channels, side, side)
        if self._shapes(channels, side) != wanted:
            raise InputError(
                f"The autoencoder of {self.name} does not make latents of {wanted[0]} and images of their old size out "
                f"of images of {wanted[1]}: give one that does."
            )
        return replace(info, num_channels=self.latent_channels, resolution=side // factor)

    def _shapes(self, channels: int, side: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of a latent and of a decoded image, without weights."""
        with torch.device("meta"), torch.no_grad(), no_messages():
            try:
                model = self.kind.from_config(self.config)
                latents = _encoded(model, torch.empty(1, channels, side, side))
                return tuple(latents.shape[1:]), tuple(model.decode(latents).sample.shape[1:])
            except Exception as error:  # whatever a layer raises
                raise InputError(
                    f"The autoencoder of {self.name} fails on images of {side} pixels ({type(error).__name__}: "
                    f"{first_line(error)}): give the files as `save_pretrained` wrote them."
                ) from error

    def load(self, info: DatasetInfo, device: torch.device | str = "cpu") -> Autoencoder:
        """Load the weights, for grey images those of a grey autoencoder that does the same.

        Args:
            info (`DatasetInfo`): The public description of the data set.
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where the autoencoder will compute.

        Raises:
            InputError: As [`latent_info`] does, or if the weights are not those of the config.
            HubError: If the Hub is out of reach, or refuses access.
        """
        self.latent_info(info)
        if self.hub_id is not None:
            download_weights(self.hub_id, self.directory)
        model = adapt_autoencoder(load_weights(self.directory, self.name, self.kind), info.num_channels)
        model.register_to_config(_name_or_path="")  # a path on this machine
        return Autoencoder(model.requires_grad_(False).eval().to(device), self, info)


def latent_info(vae_name_or_path: str, info: DatasetInfo) -> DatasetInfo:
    """The description of a data set as the network sees it behind an autoencoder, which is what a network is built for.

    Give the same `vae_name_or_path` to the [`DPCurriculumConfig`] of the run, which loads the autoencoder.

    Args:
        vae_name_or_path (`str`):
            Directory or Hub id of an `AutoencoderKL`, `AutoencoderTiny` or `VQModel`, or of a pipeline with one.
        info (`DatasetInfo`): The public description of the data set, such as `dataset.info`.

    Returns:
        `DatasetInfo`: The same with the channels and the size of the latents.

    Raises:
        InputError: If there is no such autoencoder, it does not take such images, or their latents are too small.
        HubError: If the Hub is out of reach, or refuses access to the repository.

    Examples:
        >>> from diffusers import AutoencoderTiny
        >>> from diffusers_dp_curriculum import DatasetInfo, build_unet, latent_info
        >>> AutoencoderTiny().save_pretrained("public-autoencoder")
        >>> info = DatasetInfo(num_records=60_000, num_channels=3, resolution=64, class_names=("shirt", "boot"))
        >>> latents = latent_info("public-autoencoder", info)
        >>> latents.image_shape
        (4, 8, 8)
        >>> unet = build_unet(latents.resolution, latents.num_channels, latents.num_classes)
    """
    return find_autoencoder(vae_name_or_path).latent_info(info)


def find_autoencoder(vae_name_or_path: str) -> FoundAutoencoder:
    """Find an autoencoder, and refuse what is none, before any weights are downloaded.

    Args:
        vae_name_or_path (`str`): As in [`latent_info`].

    Raises:
        InputError: If there is no autoencoder of that name.
        HubError: If the Hub is out of reach, or refuses access to the repository.
    """
    name = str(vae_name_or_path)
    check_autoencoder_name(name)
    directory, hub_id = local_path(name), None
    if not directory.is_dir():
        directory, hub_id = download_descriptions(name), name
    places = [*(directory / part for part in AUTOENCODER_PARTS), directory]
    place = next((place for place in places if (place / "config.json").is_file()), None)
    if place is None:
        raise no_autoencoder(name)
    return autoencoder_in(place, name, hub_id)


def autoencoder_in(directory: Path, name: str, hub_id: str | None) -> FoundAutoencoder:
    """The autoencoder in a directory.

    Args:
        directory (`Path`): The directory of the autoencoder.
        name (`str`): The directory or Hub id as it was given.
        hub_id (`str`, *optional*): The id of the repository on the Hub; None for a directory.

    Raises:
        InputError: If it is none of a class that can be used.
    """
    content = read_json(directory / "config.json", name)
    kind = KINDS.get(str(content.get("_class_name")))
    if kind is None:
        raise InputError(
            f"{name} is a {content.get('_class_name')}: give an autoencoder of the class AutoencoderKL, "
            "AutoencoderTiny or VQModel."
        )
    config = whole_config(kind, content, name)
    into, out = config["in_channels"], config["out_channels"]
    if into != out or not IMAGE_CHANNELS.contains(into):
        raise InputError(
            f"The autoencoder of {name} takes {into} channels and gives {out}: give one of grey (1) or RGB (3) images."
        )
    return FoundAutoencoder(name, hub_id, directory, config, kind)


def scale_and_shift(config: Mapping[str, Any]) -> tuple[float, float]:
    """The numbers that make latents of about unit variance: a latent z becomes (z - shift) * scale.

    Args:
        config (`Mapping`): The config of the autoencoder.
    """
    return float(config["scaling_factor"]), float(config.get("shift_factor") or 0.0)


def _encoded(model: ModelMixin, images: torch.Tensor) -> torch.Tensor:
    """What an autoencoder makes of images before any scaling: the mode, where it gives a distribution."""
    encoded = model.encode(images)
    latents: torch.Tensor = encoded.latent_dist.mode() if "latent_dist" in encoded else encoded.latents
    return latents


def _size(info: DatasetInfo) -> str:
    return f"{info.resolution}x{info.resolution}x{info.num_channels}"
