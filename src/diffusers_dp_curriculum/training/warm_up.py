"""Stage 1 after the queries: ordinary training on the central images. Post-processing, which costs no privacy."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import kornia.augmentation as K
import numpy as np
import torch
from accelerate.utils import reduce

from ..config import DPCurriculumConfig
from ..distributed import num_processes, process_index
from ..gradients.losses import DenoisingLoss, denoising_error
from ..mechanisms.central_images import CentralImageDataset
from .checkpointing import TrainingState, make_ema


def make_augmentation(name: str, channels: int) -> torch.nn.Module:
    """Random variations of `(B, channels, height, width)` images in [0, 1].

    Args:
        name (`str`):
            `"affine"` turns, shifts and scales each image on its own; `"randaugment"` draws two operations a batch,
            geometric or of brightness, contrast and the like; `"none"` leaves images as they are.
        channels (`int`): 1 or 3; grey images have no colour to vary.
    """
    if name == "affine":
        return K.RandomAffine(degrees=10.0, translate=(0.1, 0.1), scale=(0.9, 1.1), padding_mode="border", p=0.8)
    if name == "none":
        return torch.nn.Identity()
    # RandAugment (Cubuk et al. 2019, arXiv:1909.13719) as the paper has it: 2 operations of magnitude 3, which is a
    # tenth of the largest. Its posterisation keeps all bits at that magnitude, and is left out.
    operations = [
        torch.nn.Identity(),
        K.RandomAffine(degrees=0.0, shear=(-1.7, 1.7, 0.0, 0.0), p=1.0),
        K.RandomAffine(degrees=0.0, shear=(0.0, 0.0, -1.7, 1.7), p=1.0),
        K.RandomAffine(degrees=0.0, translate=(0.045, 0.0), p=1.0),
        K.RandomAffine(degrees=0.0, translate=(0.0, 0.045), p=1.0),
        K.RandomAffine(degrees=3.0, p=1.0),
        K.RandomBrightness((0.91, 1.09), p=1.0),
        K.RandomContrast((0.91, 1.09), p=1.0),
        K.RandomSharpness((0.91, 1.09), p=1.0),
        K.RandomSolarize(thresholds=(0.9, 0.9), additions=(0.0, 0.0), p=1.0),
        K.RandomAutoContrast(p=1.0),
        K.RandomEqualize(p=1.0),
    ]
    if channels == 3:
        operations.append(K.RandomSaturation((0.91, 1.09), p=1.0))
    return K.ImageSequential(*operations, random_apply=2)


def start_warm_up(unet: torch.nn.Module, config: DPCurriculumConfig) -> TrainingState:
    """The warm-up before its first step; for the arguments see [`warm_up`]."""
    optimizer = torch.optim.Adam(unet.parameters(), lr=config.central_learning_rate)
    return TrainingState("warm_up", unet, optimizer, make_ema(unet, config))


def warm_up(
    state: TrainingState,
    loss: DenoisingLoss,
    central_images: CentralImageDataset,
    config: DPCurriculumConfig,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    after_step: Callable[[torch.Tensor], object] = lambda error: None,
    loss_scale: float = 1.0,
) -> None:
    """Train on the central images and random variations of them.

    Every process draws the whole batch, from a seed of the step, and learns from its share: the weights depend neither
    on the number of processes nor on whether the run was interrupted.

    Args:
        state (`TrainingState`):
            Of [`start_warm_up`] or a checkpoint; its network is trained in place, and with `config.use_ema` it ends as
            the average.
        loss (`DenoisingLoss`): Gives the noise draws.
        central_images (`CentralImageDataset`): What was released.
        config (`DPCurriculumConfig`): The fields on the warm-up and `seed` are used.
        autocast (`Callable`, *optional*): Makes the context of the forward pass.
        after_step (`Callable`, *optional*): Called after each step with the error of this process's share.
        loss_scale (`float`, *optional*, defaults to 1.0): As [`per_record_gradients`] has it.
    """
    unet = state.unet
    device = next(unet.parameters()).device
    vary = make_augmentation(config.central_augmentation, central_images.images.shape[1])
    share = torch.arange(process_index(), config.central_batch_size, num_processes(), device=device)
    unet.train()
    while state.step < config.central_train_steps:
        torch.manual_seed(int(np.random.SeedSequence([config.seed, state.step]).generate_state(1)[0]))
        chosen = torch.randint(len(central_images), (config.central_batch_size,))
        images = vary(central_images.images[chosen].to(device)) * 2 - 1
        draws = loss.draw(images, central_images.labels[chosen].to(device), noise_multiplicity=1).flatten()
        error = torch.zeros((), device=device)
        if len(share) > 0:
            with autocast():
                error = denoising_error(unet, draws.of_records(share))
            (error * (loss_scale * len(share) / config.central_batch_size)).backward()
        _sum_gradients(unet)
        if loss_scale != 1:
            _unscale_gradients(unet, loss_scale)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.advance()
        after_step(error.detach())
    if config.use_ema:
        state.ema.copy_to(unet.parameters())


def _sum_gradients(unet: torch.nn.Module) -> None:
    """Add up the gradients of all processes' shares."""
    if num_processes() == 1:
        return
    trainable = [p for p in unet.parameters() if p.requires_grad]
    for p in trainable:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    for p, total in zip(trainable, reduce([p.grad for p in trainable], reduction="sum"), strict=True):
        p.grad = total


def _unscale_gradients(unet: torch.nn.Module, loss_scale: float) -> None:
    """Divide by the factor of the loss; what overflowed takes no part in the step."""
    for p in unet.parameters():
        if p.grad is not None:
            p.grad.div_(loss_scale).nan_to_num_(0.0, 0.0, 0.0)
