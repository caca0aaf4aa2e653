"""Sets up DP-SGD before its first step: optimizer, learning-rate schedule, and the average of the weights."""

import torch
from diffusers.optimization import get_scheduler

from ..config import DPCurriculumConfig
from .stages import DP_SGD
from .training_state import TrainingState, make_ema


def start_dp_sgd(unet: torch.nn.Module, config: DPCurriculumConfig) -> TrainingState:
    """Create the training state of DP-SGD before its first step.

    A schedule of diffusers with a warm-up starts at a learning rate of 0, and a DP-SGD step at a learning rate of 0
    spends budget on nothing. A schedule with a warm-up of w steps therefore starts at its second value and is one step
    longer: step 1 has 1/w of the learning rate, step w all of it, and the last step is as far from the end of the decay
    as without a warm-up.

    Args:
        unet (`torch.nn.Module`): The network; its trainable parameters are trained.
        config (`DPCurriculumConfig`): The fields of DP-SGD's optimizer and of the average are used.
    """
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in unet.parameters() if p.requires_grad],
                "initial_lr": config.learning_rate,  # torch needs this for a schedule with `last_epoch` >= 0
            }
        ],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )
    skipped = 1 if config.lr_warmup_steps > 0 else 0
    lr_scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps + skipped,
        last_epoch=skipped - 1,
    )
    return TrainingState(DP_SGD, unet, optimizer, make_ema(unet, config), lr_scheduler)
