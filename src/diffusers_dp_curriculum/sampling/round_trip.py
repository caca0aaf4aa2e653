"""Saves a network and its noise scheduler before anything is spent on them, loads them, and compares.

A saved network is its config and its weights. What is not in either of them (tied weights, replaced layers, adapters,
hooks, an attribute that was set later) is lost: the published network would be another one than the trained one.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import diffusers
import torch
from diffusers import SchedulerMixin, UNet2DModel

from ..errors import InputError, StorageError, first_line
from ..files import full_disk_errors
from ..gradients.losses import NoiseDraws
from ..gradients.trials import random_parameters


Part = TypeVar("Part", UNet2DModel, SchedulerMixin)

# Relative difference of outputs that count as equal: implementations of attention differ in the last digits.
TOLERANCE = 1e-3


def check_round_trip(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    rows: NoiseDraws,
    published: Callable[[], UNet2DModel] | None = None,
) -> None:
    """Refuse a network or a noise scheduler that is another one after it was saved and loaded.

    The network is compared with random parameters, since layers that begin with zeros would hide what follows them.

    Args:
        unet (`UNet2DModel`): The network, in evaluation mode; its parameters are left as they were.
        scheduler (`SchedulerMixin`): The noise scheduler.
        rows (`NoiseDraws`): Random draws with one leading dimension, on which the networks are compared.
        published (`Callable`, *optional*):
            Returns the network that is saved for `unet` as it is at the time of the call, such as a copy with merged
            adapters; by default `unet` itself.

    Raises:
        InputError: If one of the two cannot be saved and loaded, or is another one then.
    """
    if getattr(diffusers, type(scheduler).__name__, None) is not type(scheduler):
        raise InputError(
            f"The noise scheduler is a {type(scheduler).__name__}, which diffusers cannot load: use one of diffusers' "
            "own classes."
        )
    with random_parameters(unet), tempfile.TemporaryDirectory() as directory, torch.no_grad():
        try:
            saved = unet if published is None else published()
            with full_disk_errors(Path(directory), "start again, or set TMPDIR to a directory on another disk"):
                loaded, loaded_scheduler = _saved_and_loaded(saved, directory), _saved_and_loaded(scheduler, directory)
        except StorageError:
            raise
        except Exception as error:  # of many types, from diffusers, safetensors and PyTorch
            raise _refusal(f"{type(error).__name__}: {first_line(error)}") from error
        if names := saved.state_dict().keys() ^ loaded.state_dict().keys():
            raise _refusal(f"only one of the two has {min(names)}")
        loaded.to(unet.device)
        expected, result = (network(rows.noisy, rows.timesteps, rows.labels).sample for network in (unet, loaded))
    if not (expected - result).abs().max() <= TOLERANCE * expected.abs().max():
        raise _refusal("their outputs differ")
    if different := _first_difference(scheduler, loaded_scheduler):
        raise InputError(
            f"The noise scheduler's {different} is not what its config gives, and would be lost when it is saved: make "
            "the scheduler from its config alone."
        )


def _saved_and_loaded(part: Part, directory: str) -> Part:
    """What others load of a network or a noise scheduler that is saved in the same way as in a pipeline."""
    path = Path(directory, type(part).__name__)
    part.save_pretrained(path)
    verbosity = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()  # its warnings of missing weights would stand beside the refusal
    try:
        return type(part).from_pretrained(path)
    finally:
        diffusers.utils.logging.set_verbosity(verbosity)


def _refusal(reason: str) -> InputError:
    return InputError(
        f"The UNet is not the network that its config and weights give when they are saved and loaded ({reason}): make "
        "a UNet2DModel from a config that describes all of it, and merge adapters, such as LoRA, first."
    )


def _first_difference(one: SchedulerMixin, two: SchedulerMixin) -> str | None:
    """The first attribute in which two noise schedulers differ, once they have the same timesteps."""
    one, two = copy.deepcopy(one), copy.deepcopy(two)
    for scheduler in (one, two):
        scheduler.set_timesteps(min(3, scheduler.config.num_train_timesteps))
    for name, value in vars(one).items():
        other = vars(two).get(name)
        if isinstance(value, torch.Tensor):
            if not (isinstance(other, torch.Tensor) and torch.equal(value.cpu(), other.cpu())):
                return name
        elif isinstance(value, str) and value != other:
            return name
    return None
