"""Sets up the loss of a run, the schedule of a stage, and DP-SGD before its first step."""

import torch
from diffusers import DDPMScheduler, EDMEulerScheduler
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LRScheduler

from ..config import DPCurriculumConfig
from ..gradients.losses import DenoisingLoss
from .stages import DP_SGD
from .training_state import TrainingState, make_ema


def make_loss(
    noise_scheduler: DDPMScheduler | EDMEulerScheduler,
    config: DPCurriculumConfig,
    null_label: int | None,
    latents: bool = False,
) -> DenoisingLoss:
    """Create the training loss of a run.

    Args:
        noise_scheduler (`DDPMScheduler` or `EDMEulerScheduler`): Gives the noise schedule and the prediction type.
        config (`DPCurriculumConfig`): The fields of the loss are used.
        null_label (`int`, *optional*): The null class; None for an unconditional network.
        latents (`bool`, *optional*, defaults to False):
            Whether it is of latents. The loss mirrors none of them: images are mirrored before they are encoded.
    """
    return DenoisingLoss(
        noise_scheduler,
        timestep_sampling=config.timestep_sampling,
        noise_level_mean=config.noise_level_mean,
        noise_level_std=config.noise_level_std,
        label_dropout=config.label_dropout,
        null_label=null_label,
        random_flip=config.random_flip and not latents,
    )


def start_dp_sgd(unet: torch.nn.Module, config: DPCurriculumConfig) -> TrainingState:
    """Create the training state of DP-SGD before its first step.

    Args:
        unet (`torch.nn.Module`): The network; its trainable parameters are trained.
        config (`DPCurriculumConfig`): The fields of DP-SGD's optimizer and of the average are used.
    """
    optimizer = torch.optim.AdamW(
        [p for p in unet.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )
    lr_scheduler = make_lr_scheduler(optimizer, config.max_train_steps, config)
    return TrainingState(DP_SGD, unet, optimizer, make_ema(unet, config), lr_scheduler)


def make_lr_scheduler(optimizer: torch.optim.Optimizer, steps: int, config: DPCurriculumConfig) -> LRScheduler:
    """Create the learning-rate schedule of a stage.

    A schedule of diffusers with a warm-up starts at a learning rate of 0, and a DP-SGD step at a learning rate of 0
    spends budget on nothing. A schedule with a warm-up of w steps therefore starts at its second value and is one step
    longer: step 1 has 1/w of the learning rate, step w all of it, and the last step is as far from the end of the decay
    as without a warm-up.

    Args:
        optimizer (`torch.optim.Optimizer`): The optimizer of the stage, with the peak of the learning rate.
        steps (`int`): Number of steps of the stage.
        config (`DPCurriculumConfig`): The fields of the schedule are used.
    """
    skipped = 1 if config.lr_warmup_steps > 0 else 0
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # torch needs this for a schedule with `last_epoch` >= 0
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=steps + skipped,
        last_epoch=skipped - 1,
    )
