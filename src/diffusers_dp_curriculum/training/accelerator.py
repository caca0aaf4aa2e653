"""The accelerator of a run: devices, processes, precision and trackers, as the launcher and the config ask for."""

import atexit
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, parse_choice_from_env

from ..config import DPCurriculumConfig
from ..errors import InputError
from ..gradients.precision import LOSS_SCALES
from ..run_paths import RunPaths


# How long the other processes wait for the main one, which alone queries central images and draws samples.
PROCESS_GROUP_TIMEOUT = timedelta(hours=6)


def make_accelerator(args: DPCurriculumConfig) -> Accelerator:
    """The accelerator of a run, which joins the processes that the launcher has started.

    Raises:
        InputError: If this machine cannot do what `args` ask for.
    """
    on_cpu = not torch.accelerator.is_available()
    # Before the accelerator is made, which keeps its precision for the whole process.
    _check_precision(args.mixed_precision or parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no"), on_cpu)
    if args.logger is not None and args.logger not in [str(tracker) for tracker in get_available_trackers()]:
        raise InputError(
            f"The logger {args.logger} is not installed: install it (`pip install {args.logger}`), or choose another "
            "`logger`."
        )
    patience = InitProcessGroupKwargs(timeout=PROCESS_GROUP_TIMEOUT)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        cpu=on_cpu,
        kwargs_handlers=[patience],
        log_with=args.logger,
        project_dir=RunPaths(Path(args.output_dir)).private / args.logging_dir,
    )
    if accelerator.device.type == "mps":
        raise InputError(
            "DP noise is in float64, which Apple's GPU has not: set ACCELERATE_USE_CPU=true to train on the CPU."
        )
    # Otherwise the process that ends first takes the others' connections along.
    atexit.register(accelerator.state.destroy_process_group)
    # What holds in the end: that of an accelerator which was there already, and on a CPU if the launcher says so.
    _check_precision(accelerator.mixed_precision, accelerator.device.type == "cpu")
    return accelerator


def _check_precision(mixed_precision: str, on_cpu: bool) -> None:
    if mixed_precision not in LOSS_SCALES:
        raise InputError(f"There are no passes in {mixed_precision}: use `mixed_precision` no, bf16 or fp16.")
    if mixed_precision == "fp16" and on_cpu:  # Accelerate would compute in float32 and say nothing
        raise InputError("fp16 is for accelerators: use bf16 or no on a CPU.")
