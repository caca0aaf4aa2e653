"""What the processes of one run, on one machine or several, have to agree on.

One process is the main one: it alone reads for the central images, adds noise, writes the journal and prints. A run of
a single process is its own main one, and nothing here then does anything.
"""

import atexit
from collections.abc import Callable, Hashable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    InitProcessGroupKwargs,
    broadcast,
    broadcast_object_list,
    gather_object,
    parse_choice_from_env,
)

from .config import DPCurriculumConfig
from .errors import InputError
from .per_record_gradients import LOSS_SCALES


# How long the other processes wait for the main one, which alone queries central images and draws samples.
PATIENCE = timedelta(hours=6)

Result = TypeVar("Result")


def process_index() -> int:
    """The number of this process, from 0, which is the main one."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def num_processes() -> int:
    """How many processes the run has."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def from_main(function: Callable[[], Result]) -> Result:
    """Call `function` on the main process alone, and give its result to every process.

    Raises:
        InputError: On every process, if the main one has an error; there it is the error itself.
    """
    if num_processes() == 1:
        return function()
    outcome: list[tuple[Result | None, str | None]] = [(None, "")]
    error = None
    if process_index() == 0:
        try:
            outcome = [(function(), None)]
        except Exception as caught:
            error = caught
            outcome = [(None, str(caught) if isinstance(caught, InputError) else "The main process had an error.")]
    result, message = broadcast_object_list(outcome)[0]
    if error is not None:
        raise error
    if message is not None:
        raise InputError(message)
    return result


def any_process(flag: bool) -> bool:
    """Whether `flag` is set on any process; the same answer on all of them."""
    return flag if num_processes() == 1 else any(gather_object([flag]))


def check_all_equal(value: Hashable, what: str) -> None:
    """Refuse to go on where the processes have different values.

    Raises:
        InputError: On every process, if so.
    """
    if num_processes() > 1 and len(set(gather_object([value]))) > 1:
        raise InputError(f"The processes of this run do not have the same {what}: give every machine the same.")


def share_parameters(model: torch.nn.Module) -> None:
    """Give every process the main one's parameters and buffers."""
    if num_processes() > 1:
        broadcast([tensor.data for tensor in (*model.parameters(), *model.buffers())])


def make_accelerator(args: DPCurriculumConfig) -> Accelerator:
    """The accelerator of a run, which joins the processes that the launcher has started.

    Raises:
        InputError: If this machine cannot do what `args` ask for.
    """
    on_cpu = not torch.accelerator.is_available()
    # Before the accelerator is made, which keeps its precision for the whole process.
    _check_precision(args.mixed_precision or parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no"), on_cpu)
    if args.logger is not None and args.logger not in [str(tracker) for tracker in get_available_trackers()]:
        raise InputError(f"The logger {args.logger} is not installed: `pip install {args.logger}`.")
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        cpu=on_cpu,
        kwargs_handlers=[patience],
        log_with=args.logger,
        project_dir=Path(args.output_dir) / "private" / args.logging_dir,
    )
    if accelerator.device.type == "mps":
        raise InputError("DP noise is in float64, which Apple's GPU has not: use `accelerate launch --cpu`.")
    # Otherwise the process that ends first takes the others' connections along.
    atexit.register(accelerator.state.destroy_process_group)
    # What holds in the end: that of an accelerator which was there already, and on a CPU if the launcher says so.
    _check_precision(accelerator.mixed_precision, accelerator.device.type == "cpu")
    return accelerator


def _check_precision(mixed_precision: str, on_cpu: bool) -> None:
    if mixed_precision not in LOSS_SCALES:
        raise InputError(f"There are no passes in {mixed_precision}: use --mixed_precision no, bf16 or fp16.")
    if mixed_precision == "fp16" and on_cpu:  # Accelerate would compute in float32 and say nothing
        raise InputError("fp16 is for accelerators: use bf16 or no on a CPU.")
