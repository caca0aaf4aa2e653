"""Stage 1 after the queries: ordinary training on the central images. Post-processing, which costs no privacy."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import kornia.augmentation
import torch
from diffusers.training_utils import EMAModel

from .central_images import CentralImageDataset
from .config import DPCurriculumConfig
from .losses import DenoisingLoss, denoising_error


def warm_up(
    unet: torch.nn.Module,
    loss: DenoisingLoss,
    central_images: CentralImageDataset,
    config: DPCurriculumConfig,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    after_step: Callable[[], object] = lambda: None,
) -> None:
    """Train `unet` on the central images and random affine variations of them.

    Args:
        unet (`torch.nn.Module`): The network, trained in place; with `config.use_ema` it ends as the average.
        loss (`DenoisingLoss`): Gives the noise draws.
        central_images (`CentralImageDataset`): What was released.
        config (`DPCurriculumConfig`): The fields `central_train_steps`, `central_batch_size`, `central_learning_rate`
            and those of the average.
        autocast (`Callable`, *optional*): Makes the context of the forward pass.
        after_step (`Callable`, *optional*): Called after each step.
    """
    device = next(unet.parameters()).device
    vary = kornia.augmentation.RandomAffine(
        degrees=10.0, translate=(0.1, 0.1), scale=(0.9, 1.1), padding_mode="border", p=0.8
    )
    optimizer = torch.optim.Adam(unet.parameters(), lr=config.central_learning_rate)
    ema = make_ema(unet, config)
    unet.train()
    for _ in range(config.central_train_steps):
        chosen = torch.randint(len(central_images), (config.central_batch_size,))
        images = vary(central_images.images[chosen].to(device)) * 2 - 1
        draws = loss.draw(images, central_images.labels[chosen].to(device), noise_multiplicity=1)
        with autocast():
            error = denoising_error(unet, draws.flatten())
        error.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        after_step()
    if config.use_ema:
        ema.copy_to(unet.parameters())


def make_ema(unet: torch.nn.Module, config: DPCurriculumConfig) -> EMAModel:
    """The exponential moving average of the weights that each stage keeps."""
    return EMAModel(
        unet.parameters(),
        decay=config.ema_max_decay,
        use_ema_warmup=True,
        inv_gamma=config.ema_inv_gamma,
        power=config.ema_power,
        foreach=True,
    )
