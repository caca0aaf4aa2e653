"""Ordinary training on released images. It costs no privacy."""

from collections.abc import Callable

import kornia.augmentation as K
import torch
from accelerate.utils import reduce

from ..config import DPCurriculumConfig
from ..distributed import num_processes, process_index, set_on_any_process
from ..errors import TrainingError
from ..finite import finite_numbers
from ..gradients.losses import DenoisingLoss, denoising_error, mirror_half
from ..gradients.precision import FULL_PRECISION, Precision
from ..gradients.trials import seed_from
from ..mechanisms.releases import ReleasedImages
from ..pictures import enlarge
from ..transfers import to_device
from .autoencoder import Autoencoder
from .optimization import make_lr_scheduler
from .stages import WarmUpStage
from .training_state import TrainingState, make_ema


# Targets have a variance of about 1, and a network that predicts zeros has a loss of about 1.
LARGEST_LOSS = 1000.0


def make_augmentation(name: str, channels: int) -> torch.nn.Module:
    """Create a module that varies `(B, channels, height, width)` images in [0, 1] at random.

    Args:
        name (`str`):
            `"affine"` rotates, shifts and scales each image independently; `"randaugment"` draws two operations per
            batch, geometric ones or changes of brightness, contrast and the like; `"none"` leaves images unchanged.
        channels (`int`): 1 or 3; the colour of grey images is not varied.
    """
    if name == "affine":
        return K.RandomAffine(degrees=10.0, translate=(0.1, 0.1), scale=(0.9, 1.1), padding_mode="border", p=0.8)
    if name == "none":
        return torch.nn.Identity()
    # RandAugment (Cubuk et al. 2019, arXiv:1909.13719) with the paper's 2 operations of magnitude 3, a tenth
    # of the largest. Posterisation is left out, as it keeps all bits at that magnitude.
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


def start_warm_up(unet: torch.nn.Module, stage: WarmUpStage, config: DPCurriculumConfig) -> TrainingState:
    """Create the training state of a warm-up stage before its first step.

    Args:
        unet (`torch.nn.Module`): The network; all of it is trained.
        stage (`WarmUpStage`): The warm-up stage.
        config (`DPCurriculumConfig`): The fields of the average and of the learning-rate schedule are used.
    """
    optimizer = torch.optim.Adam(unet.parameters(), lr=stage.learning_rate)
    lr_scheduler = make_lr_scheduler(optimizer, stage.train_steps, config)
    return TrainingState(stage.name, unet, optimizer, make_ema(unet, config), lr_scheduler)


def warm_up(
    state: TrainingState,
    loss: DenoisingLoss,
    released: ReleasedImages,
    stage: WarmUpStage,
    config: DPCurriculumConfig,
    precision: Precision = FULL_PRECISION,
    after_step: Callable[[torch.Tensor], object] = lambda error: None,
    autoencoder: Autoencoder | None = None,
) -> bool:
    """Train on released images and random variations of them.

    Every process draws the whole batch from a seed that depends on the step, and trains on its share of the batch. The
    weights therefore depend neither on the number of processes nor on whether the run was interrupted.

    Args:
        state (`TrainingState`):
            From [`start_warm_up`] or a checkpoint. The network is trained in place; with `config.use_ema` it has the
            averaged weights at the end.
        loss (`DenoisingLoss`): Makes noise draws from images.
        released (`ReleasedImages`): The released images, which are enlarged if the network's are larger.
        stage (`WarmUpStage`): Steps, batch size and augmentation.
        config (`DPCurriculumConfig`): `seed` and `use_ema` are used, and for latents `random_flip`.
        precision (`Precision`, *optional*): Autocast type and loss scale.
        after_step (`Callable`, *optional*):
            Called after each step with the loss on this process's share; training stops if it returns a true value.
        autoencoder (`Autoencoder`, *optional*): Encodes the varied images; None for a network of pixels.

    Returns:
        `bool`: Whether all steps were taken.

    Raises:
        TrainingError: If training diverges, before anything of that step is passed to `after_step`.
    """
    unet = state.unet
    device = next(unet.parameters()).device
    vary = make_augmentation(stage.augmentation, released.images.shape[1])
    share = torch.arange(process_index(), stage.batch_size, num_processes(), device=device)
    unet.train()
    while state.step < stage.train_steps:
        seed_from(config.seed, state.step)
        chosen, labels = released.batch(torch.randint(len(released), (stage.batch_size,)))
        images = vary(to_device(chosen, device))
        clean = _for_network(images, unet.config.sample_size, autoencoder, config.random_flip)
        draws = loss.draw(clean, to_device(labels, device), noise_multiplicity=1).flatten()
        error = torch.zeros((), device=device)
        if len(share) > 0:
            with precision.autocast():
                error = denoising_error(unet, draws.of_records(share))
            (error * (precision.loss_scale * len(share) / stage.batch_size)).backward()
        _sum_gradients(unet)
        if precision.loss_scale != 1:
            _unscale_gradients(unet, precision.loss_scale)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.advance()
        error = error.detach()
        if any(set_on_any_process(~(error <= LARGEST_LOSS), ~finite_numbers(unet))):
            raise TrainingError(
                f"The training on {stage.name.replace('_', ' ')} diverged by step {state.step}: lower "
                f"`{stage.learning_rate_option}`, and resume with `resume_from_checkpoint` latest, which queries no "
                "record again."
            )
        if after_step(error):
            return False
    if config.use_ema:
        state.ema.copy_to(unet.parameters())
    return True


def _for_network(
    images: torch.Tensor, sample_size: int, autoencoder: Autoencoder | None, random_flip: bool
) -> torch.Tensor:
    """Images in [0, 1] of any size as the network takes them: in [-1, 1], or as latents."""
    if autoencoder is None:
        return enlarge(images, sample_size) * 2 - 1
    images = enlarge(images, autoencoder.image_info.resolution) * 2 - 1
    return autoencoder.encode(mirror_half(images) if random_flip else images)


def _sum_gradients(unet: torch.nn.Module) -> None:
    """Sum the gradients over all processes."""
    if num_processes() == 1:
        return
    trainable = [p for p in unet.parameters() if p.requires_grad]
    for p in trainable:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    for p, total in zip(trainable, reduce([p.grad for p in trainable], reduction="sum"), strict=True):
        p.grad = total


def _unscale_gradients(unet: torch.nn.Module, loss_scale: float) -> None:
    """Divide the gradients by the loss scale; values that overflowed become 0."""
    for p in unet.parameters():
        if p.grad is not None:
            p.grad.div_(loss_scale).nan_to_num_(0.0, 0.0, 0.0)
