"""Everything that a training step of the network changes, which a checkpoint saves."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.training_utils import EMAModel

from ..config import DPCurriculumConfig


class StageState(Protocol):
    """Everything that a step of a stage changes.

    Attributes:
        stage (`str`): The name of the stage, such as `"central_images"` or `"dp_sgd"`.
        optimizer (`torch.optim.Optimizer`): The optimizer of the stage.
        step (`int`): The number of steps taken in this stage.
    """

    stage: str
    optimizer: torch.optim.Optimizer
    step: int

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values, without the name of the stage."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what [`state_dict`] returned, on whatever device the networks are now."""
        ...


@dataclass
class TrainingState:
    """Everything that a training step of the network changes.

    Args:
        stage (`str`): The name of the stage.
        unet (`torch.nn.Module`): The network.
        optimizer (`torch.optim.Optimizer`): The optimizer of the stage.
        ema (`EMAModel`): The exponential moving average of the weights.
        lr_scheduler (`torch.optim.lr_scheduler.LRScheduler`, *optional*):
            The learning-rate schedule, if the stage has one.
        step (`int`): The number of steps taken in this stage.
    """

    stage: str
    unet: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMAModel
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    step: int = 0

    def advance(self) -> None:
        """Update the learning rate, the average and the step count after a step of the optimizer."""
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.ema.step(self.unet.parameters())
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values, without the name of the stage."""
        return {
            "unet": self.unet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "lr_scheduler": None if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what [`state_dict`] returned, on whatever device the network is now.

        Before the first step an optimizer and its schedule hold settings alone, and those of this run remain.
        """
        self.unet.load_state_dict(state["unet"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(next(self.unet.parameters()).device)
        self.step = state["step"]
        if self.step > 0:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.lr_scheduler is not None:
                self.lr_scheduler.load_state_dict(state["lr_scheduler"])


def make_ema(unet: torch.nn.Module, config: DPCurriculumConfig) -> EMAModel:
    """Create the exponential moving average of the weights; each stage has its own."""
    return EMAModel(
        unet.parameters(),
        decay=config.ema_max_decay,
        use_ema_warmup=True,
        inv_gamma=config.ema_inv_gamma,
        power=config.ema_power,
        foreach=True,
    )
