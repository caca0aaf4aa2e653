"""Trials of a network before any record is read, with random numbers in the place of records."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils import set_seed

from .losses import DenoisingLoss, NoiseDraws


@contextmanager
def on_trial(model: torch.nn.Module) -> Iterator[None]:
    """Within the context, `model` is in training mode and random numbers follow from a fixed seed.

    Afterwards its modes and `.grad`s are as before, and so are the random generators of Python, NumPy and PyTorch.
    """
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    with seeded(next(model.parameters()).device):
        try:
            for parameter in gradients:
                parameter.grad = None
            model.train()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for parameter, gradient in gradients.items():
                parameter.grad = gradient


@contextmanager
def seeded(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Seed the random generators of Python, NumPy and PyTorch within the context; afterwards they are as before.

    Args:
        device (`torch.device`): The device, besides the CPU, whose generator is used.
        seed (`int`, *optional*, defaults to 0): The seed.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            set_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def seed_from(*numbers: int) -> None:
    """Seed PyTorch's generators from several numbers, such as a seed and a step, which are mixed into one.

    Args:
        *numbers (`int`): Whole numbers of at least 0.
    """
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def randomise_parameters(model: torch.nn.Module) -> None:
    """Add noise to all parameters: a last layer initialised with zeros would hide all layers before it.

    A parameter that DP-SGD does not train can change as well, in a warm-up stage.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.5 / max(parameter[:1].numel(), 1) ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn_like(parameter), alpha=scale)


@contextmanager
def random_parameters(model: torch.nn.Module) -> Iterator[None]:
    """Add noise to all parameters within the context; afterwards they are as before."""
    before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    try:
        randomise_parameters(model)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)


def random_draws(
    loss: DenoisingLoss,
    image_shape: tuple[int, int, int],
    num_records: int,
    noise_multiplicity: int,
    device: torch.device,
) -> NoiseDraws:
    """Noise draws of random images, the same at every call.

    Args:
        loss (`DenoisingLoss`): The loss, which makes the noise draws.
        image_shape (`tuple[int, int, int]`): Channels, height and width.
        num_records (`int`): B; consecutive records have different labels.
        noise_multiplicity (`int`): K, draws per record.
        device (`torch.device`): The device of the result.
    """
    with seeded(device):
        images = torch.rand(num_records, *image_shape, device=device) * 2 - 1
        labels = torch.arange(num_records, device=device) % (loss.null_label or 1)
        return loss.draw(images, labels, noise_multiplicity)


def same_call_tolerance(device: torch.device) -> float:
    """The relative difference up to which the results of two calls on equal inputs count as equal.

    A kernel computes a row from that row alone, in an order that does not depend on the values of the others: on a CPU
    not a bit changes. On a GPU some kernels add up in the order in which threads happen to arrive, so that last bits
    differ; in bfloat16 one bit is 2^-8.
    """
    return 1e-6 if device.type == "cpu" else 1e-2
