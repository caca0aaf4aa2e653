"""Which parameters DP-SGD trains: all, a part of the network, or adapters that are merged into it in the end.

A DP-SGD step adds noise of the same size to every number that it trains, and clips all of them together to one norm: if
a network has learned from public images, and little of it has to change, training few numbers leaves out the noise on
all others. The choices are those of the literature: attention and the class embedding (DP-LDM, Liu et al., TMLR
2024, arXiv:2305.15759), or low-rank adapters on attention and the class embedding (DP-LoRA, Tsai et al., ICCV 2025).

The warm-up stages train the whole network, whatever DP-SGD trains: what they learn from costs no privacy.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention

from ..checks import check_peft
from ..config import DPCurriculumConfig
from ..errors import InputError
from ..gradients.trials import seeded


ADAPTER = "default"  # peft's own name for the only adapter of a network
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]  # the linear layers of diffusers' attention
CLASS_EMBEDDING = "class_embedding"


@dataclass(frozen=True)
class TrainedPart:
    """What DP-SGD trains of a network, within [`trained_part`].

    Args:
        unet (`UNet2DModel`): The network, of which the part alone is trainable.
        name (`str`): The part in words, such as `"attention, and the class embedding"`.
        network_size (`int`): Number of parameters of the network without adapters.
        adapters (`peft.LoraModel`, *optional*): What holds the adapters of the network; None if it has none.
    """

    unet: UNet2DModel
    name: str
    network_size: int
    adapters: Any = None

    def published(self) -> UNet2DModel:
        """The network as it would be published now: itself, or a plain copy in which the adapters are merged."""
        return self.unet if self.adapters is None else _merge(copy.deepcopy(self.adapters))

    def __str__(self) -> str:
        size = sum(p.numel() for p in self.unet.parameters() if p.requires_grad)
        if self.adapters is None:
            return f"{self.name}: {size:,} of {self.network_size:,} parameters"
        return f"{self.name}: {size:,} parameters, for a network of {self.network_size:,}"


@contextmanager
def trained_part(unet: UNet2DModel, config: DPCurriculumConfig) -> Iterator[TrainedPart]:
    """Within the context, those parameters of a network are trainable that DP-SGD trains.

    With `trainable` `"lora"` the network has adapters within the context. They start without effect, from the seed of
    the run, and are merged into the weights at the end: afterwards it is a plain `UNet2DModel` again, and the same
    parameters are trainable as before. What was not trainable before is not trained.

    Args:
        unet (`UNet2DModel`): The network, which is changed in place.
        config (`DPCurriculumConfig`): `trainable`, `lora_rank` and `seed` are used.

    Raises:
        InputError: If the network has no such parameter, has adapters already, or peft is needed and not installed.
    """
    before = {p: p.requires_grad for p in unet.parameters()}
    chosen = {unet.get_parameter(name) for name in _chosen_names(unet, config.trainable)}
    size = sum(p.numel() for p in before)
    adapters = _add_adapters(unet, config) if config.trainable == "lora" else None
    try:
        for p, was_trainable in before.items():
            p.requires_grad_(was_trainable and p in chosen)
        if not any(p.requires_grad for p in unet.parameters()):
            raise InputError(
                f'`trainable` "{config.trainable}" names no trainable parameter of the UNet: give all, attention, '
                f"lora, {CLASS_EMBEDDING}, or a regular expression for whole names of parameters."
            )
        yield TrainedPart(unet, _in_words(unet, config), size, adapters)
    finally:
        if adapters is not None:
            _merge(adapters)
        for p, was_trainable in before.items():
            p.requires_grad_(was_trainable)


def _chosen_names(unet: UNet2DModel, trainable: str) -> list[str]:
    """The names of the network's own parameters that DP-SGD trains."""
    names = [name for name, _ in unet.named_parameters()]
    if trainable in ("attention", "lora"):
        blocks = [f"{name}." for name, module in unet.named_modules() if isinstance(module, Attention)]
        if not blocks:
            raise InputError(
                f'The UNet has no attention, which `trainable` "{trainable}" trains: choose another `trainable`, or a '
                "UNet with attention."
            )
        prefixes = (*blocks, f"{CLASS_EMBEDDING}.") if trainable == "attention" else (f"{CLASS_EMBEDDING}.",)
        return [name for name in names if name.startswith(prefixes)]
    if trainable == CLASS_EMBEDDING:
        if unet.class_embedding is None:
            raise InputError(
                f'The UNet has no class embedding, which `trainable` "{trainable}" trains: choose another `trainable`.'
            )
        return [name for name in names if name.startswith(f"{CLASS_EMBEDDING}.")]
    return names if trainable == "all" else [name for name in names if re.fullmatch(trainable, name)]


def _in_words(unet: UNet2DModel, config: DPCurriculumConfig) -> str:
    embedding = "" if unet.class_embedding is None else ", and the class embedding"
    return {
        "all": "the whole network",
        "attention": f"attention{embedding}",
        CLASS_EMBEDDING: "the class embedding",
        "lora": f"LoRA adapters of rank {config.lora_rank} on attention{embedding}",
    }.get(config.trainable, f"parameters that match {config.trainable}")


def _add_adapters(unet: UNet2DModel, config: DPCurriculumConfig) -> Any:
    """Add LoRA adapters (Hu et al. 2022, arXiv:2106.09685) as diffusers' own training scripts do; all else is frozen.

    An adapter adds B A x to the output of a linear layer for input x, where A and B have `lora_rank` rows and columns.
    A is random and B is zero at first.
    """
    check_peft(config.trainable)
    from peft import LoraConfig, LoraModel

    if hasattr(unet, "peft_config"):
        raise InputError('The UNet has adapters already: merge them first, or choose another `trainable` than "lora".')
    settings = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_rank, init_lora_weights="gaussian", target_modules=PROJECTIONS
    )
    with seeded(unet.device, config.seed):
        return LoraModel(unet, settings, ADAPTER)


@torch.no_grad()
def _merge(adapters: Any) -> UNet2DModel:
    """Add the adapters to the weights that they adapt, and remove them; return the network."""
    unet: UNet2DModel = adapters.merge_and_unload()
    vars(unet).pop("peft_config", None)  # which early versions of peft leave behind
    return unet
