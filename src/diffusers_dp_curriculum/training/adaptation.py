"""Adapts a trained network to other images: their size, their channels and their classes.

Each change keeps what the network computes where the old and the new input mean the same: a grey image is the same
image in colour, and "no label" stays "no label".
"""

from collections.abc import Sequence

import torch
from diffusers import ModelMixin, UNet2DModel
from torch.nn import Conv2d

from ..data.dataset_info import DatasetInfo
from ..data.silence import no_messages
from .networks import network_sizes


def adapt_network(unet: UNet2DModel, info: DatasetInfo, known_classes: Sequence[str] | None = None) -> UNet2DModel:
    """Make a network for a data set out of the weights of one that was trained on other images.

    - **Size.** A convolutional network takes images of any size that it can halve often enough; only `sample_size` of
      its config changes.
    - **Channels.** From colour to grey, the weights of the first layer are summed over its input channels, and those of
      the last layer are averaged over its output channels: a grey image gives what the three equal channels of the same
      image gave, averaged. From grey to colour, the first layer sees the average of the channels, and each channel of
      the result is that of the grey network.
    - **Classes.** Every class begins as "no label": its embedding is that of the null class, so that DP-SGD has to
      learn only in what the classes differ. A class whose name the network knows keeps its embedding. For a network
      with classes and without a null class, "no label" is the mean of the embeddings, which prefers no class; for one
      without classes it is zero, which changes nothing. If the data set has no classes, the embedding of "no label"
      becomes part of the time embedding.

    Args:
        unet (`UNet2DModel`): The trained network, which is left as it is. Its channels are 1 or 3.
        info (`DatasetInfo`): The public description of the data set.
        known_classes (`Sequence[str]`, *optional*):
            The names of the network's classes, or none if they have no names, if its last embedding is that of the null
            class. None if it has no classes, or no null class.

    Returns:
        `UNet2DModel`: A network with the size, the channels and the classes of the data set, and the null class.
    """
    weights = dict(unet.state_dict())
    _adapt_channels(weights, "conv_in", "conv_out", unet.config.in_channels, info.num_channels)
    _adapt_classes(weights, info.class_names, known_classes)
    sizes = network_sizes(info.resolution, info.num_channels, info.num_classes)
    adapted = UNet2DModel.from_config(unet.config, **sizes)
    adapted.load_state_dict(weights)
    return adapted


def adapt_autoencoder(autoencoder: ModelMixin, num_channels: int) -> ModelMixin:
    """Make an autoencoder of grey images out of one of colour images.

    A grey image has the latent of the same image in colour, and a latent becomes the average of the channels that it
    became before.

    Args:
        autoencoder (`ModelMixin`): The autoencoder, which is left as it is.
        num_channels (`int`): The channels of the images; an autoencoder that has them is returned as it is.
    """
    channels = autoencoder.config.in_channels
    if channels == num_channels:
        return autoencoder
    first, last = (
        [f"{half}.{name}" for name, layer in getattr(autoencoder, half).named_modules() if isinstance(layer, Conv2d)]
        for half in ("encoder", "decoder")
    )
    weights = dict(autoencoder.state_dict())
    _adapt_channels(weights, first[0], last[-1], channels, num_channels)
    with no_messages():
        adapted = type(autoencoder).from_config(autoencoder.config, in_channels=num_channels, out_channels=num_channels)
    adapted.load_state_dict(weights)
    return adapted


def _adapt_channels(weights: dict[str, torch.Tensor], first: str, last: str, channels: int, wanted: int) -> None:
    """Sum or average over three channels, or repeat one channel three times, in the first and the last convolution."""
    if channels == wanted:
        return
    into, out, bias = (weights[name] for name in (f"{first}.weight", f"{last}.weight", f"{last}.bias"))
    if wanted == 1:
        into, out, bias = into.sum(1, keepdim=True), out.mean(0, keepdim=True), bias.mean(0, keepdim=True)
    else:
        into, out, bias = into.repeat(1, wanted, 1, 1) / wanted, out.repeat(wanted, 1, 1, 1), bias.repeat(wanted)
    weights.update({f"{first}.weight": into, f"{last}.weight": out, f"{last}.bias": bias})


def _adapt_classes(
    weights: dict[str, torch.Tensor], class_names: Sequence[str] | None, known_classes: Sequence[str] | None
) -> None:
    """Replace the embeddings of the network's classes by those of other classes and of the null class."""
    time_bias = "time_embedding.linear_2.bias"  # an embedding of a class is added to that of the time
    embeddings = weights.pop("class_embedding.weight", None)
    if embeddings is None:
        no_label = torch.zeros_like(weights[time_bias])
    else:
        no_label = embeddings.mean(0) if known_classes is None else embeddings[-1]
    if class_names is None:
        weights[time_bias] = weights[time_bias] + no_label
        return
    known = {} if embeddings is None else dict(zip(known_classes or (), embeddings, strict=False))
    weights["class_embedding.weight"] = torch.stack([*(known.get(name, no_label) for name in class_names), no_label])
