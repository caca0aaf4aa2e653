"""The number types in which forward and backward passes compute."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator


# The factor of the loss before the backward pass, by Accelerate's name of the mixed precision: in fp16 the gradients of
# activations would vanish without it. It is fixed: the usual factor adapts to overflows, and would depend on records.
LOSS_SCALES = {"no": 1.0, "bf16": 1.0, "fp16": 1024.0}


@dataclass(frozen=True)
class Precision:
    """The autocast context of a forward pass, and the factor of its loss before the backward pass.

    Args:
        autocast (`Callable`, *optional*):
            Called without arguments, returns the context of the forward pass; one without effect by default.
        loss_scale (`float`, *optional*, defaults to 1.0):
            The factor of the loss before the backward pass. Gradients are divided by it again, in the parameter's type
            and before anything is clipped, so that it only changes which numbers a pass in a small type can represent.
    """

    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    loss_scale: float = 1.0

    @classmethod
    def of(cls, accelerator: Accelerator) -> "Precision":
        """The precision of the passes that an accelerator makes.

        Args:
            accelerator (`Accelerator`): An accelerator with mixed precision "no", "bf16" or "fp16".
        """
        return cls(accelerator.autocast, LOSS_SCALES[accelerator.mixed_precision])


FULL_PRECISION = Precision()
