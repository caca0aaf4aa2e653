"""Checks that a network fits the data set and can be trained under differential privacy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DModel

from ..checks import check_levels
from ..data.dataset_info import DatasetInfo
from ..errors import DPCurriculumError, InputError, first_line


# The end of the name of a part that `torch.compile` has wrapped.
COMPILED = "._orig_mod"


def check_type(unet: torch.nn.Module) -> None:
    """Refuse a network that is not a plain `UNet2DModel`: a wrapped, compiled or adapted one, or one of another class.

    Diffusers could not load it from what a run publishes. A compiled network would be compiled again for each of the
    many trials, and the compiler of `accelerate launch` compiles the gradients of single records instead.

    Raises:
        InputError: If the network, or a part of it, is wrapped or compiled, or the network is of another class.
    """
    if type(unet) is not UNet2DModel:
        raise InputError(
            f"`unet` is of type {type(unet).__name__}, which cannot be published as a UNet2DModel: give the "
            "UNet2DModel itself; `accelerate launch` starts several processes, or a compiler."
        )
    for name, module in unet.named_modules():
        if name.endswith(COMPILED) or module._compiled_call_impl is not None:
            where = name.removesuffix(COMPILED) or "it"
            raise InputError(
                f"The UNet is compiled (by `torch.compile` of {where}): give it as it was before; "
                "`accelerate launch` with a `dynamo_backend` compiles its gradients."
            )


@contextmanager
def network_errors() -> Iterator[None]:
    """Turn any error of a network on random numbers into one sentence.

    Raises:
        InputError: If the network raises an error.
    """
    try:
        yield
    except DPCurriculumError:
        raise
    except Exception as error:  # whatever a layer raises
        raise InputError(
            f"The UNet fails on random images ({type(error).__name__}: {first_line(error)}): correct its config."
        ) from error


def check_sample_size(unet: UNet2DModel) -> int:
    """The height and width of the network's images in pixels, which must be known before any image is decoded.

    Raises:
        InputError: If `sample_size` is not a single integer.
    """
    if not isinstance(unet.config.sample_size, int):
        raise InputError(f"The UNet has sample_size={unet.config.sample_size}: give the images' height as one number.")
    return unet.config.sample_size


# An attribute that marks a network that has learned from sensitive records; copies of the network have it too.
TRAINED = "_has_learned_from_sensitive_records"


def check_not_trained(unet: UNet2DModel) -> None:
    """Refuse a network that has learned from sensitive records in another run, and any copy of such a network.

    Raises:
        InputError: If the network, or the network that it was copied from, was trained by DP-SGD or on released images.
    """
    if TRAINED in vars(unet):
        raise InputError(
            "This UNet has learned from sensitive records in another run, whose cost this one would not count: make a "
            "new one."
        )


def mark_as_trained(unet: UNet2DModel) -> None:
    """Mark a network that is about to learn from sensitive records."""
    setattr(unet, TRAINED, True)


def check_network(unet: UNet2DModel, info: DatasetInfo, what: str = "images") -> None:
    """Refuse a network that cannot be trained on a data set.

    Args:
        unet (`UNet2DModel`): The network.
        info (`DatasetInfo`): The description of the data set, with the size and the channels of what it denoises.
        what (`str`, *optional*, defaults to `"images"`): What it denoises, `"images"` or `"latents"`.

    Raises:
        InputError: If resolution, channels or classes do not fit the data set, if no parameter is trainable, or if one
            is not in float32 or has no values.
    """
    config = unet.config
    check_levels(0, len(config.block_out_channels), config.sample_size)
    if {config.in_channels, config.out_channels} != {info.num_channels}:
        raise InputError(
            f"The {what} have {info.num_channels} channels, and the UNet takes {config.in_channels} and gives "
            f"{config.out_channels}: make a UNet with in_channels=out_channels={info.num_channels}."
        )
    wanted = None if info.num_classes is None else info.num_classes + 1
    if config.num_class_embeds != wanted:
        raise InputError(
            f"The UNet has num_class_embeds={config.num_class_embeds} where the data set needs {wanted} (its classes "
            "and the null class; None without classes): make the UNet with that."
        )
    if config.class_embed_type not in (None, "timestep"):
        raise InputError(
            f"The UNet has class_embed_type={config.class_embed_type!r}, which takes vectors where a data set has "
            "numbers of classes: make the UNet without `class_embed_type`."
        )
    if not any(p.requires_grad for p in unet.parameters()):
        raise InputError("No parameter of the UNet is trainable: set requires_grad of those that should be.")
    if any(p.is_meta for p in unet.parameters()):
        raise InputError("The UNet has shapes and no weights: make it outside of `init_empty_weights`.")
    if any(p.dtype != torch.float32 for p in unet.parameters()):
        raise InputError("The UNet is not in float32, which DP arithmetic needs: convert it with unet.float().")
