"""Creates the `Accelerator` of a run: devices, processes, precision and trackers."""

import atexit
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import InitProcessGroupKwargs, parse_choice_from_env, parse_flag_from_env

from ..checks import check_logger
from ..config import DPCurriculumConfig
from ..errors import InputError, first_line
from ..gradients.precision import LOSS_SCALES
from ..run_paths import RunPaths
from .heartbeat import start_heartbeat


# The timeout of collective operations. It is long because the other processes wait while the main process alone queries
# central images and draws samples. The heartbeat tells a process that is dead from one that is slow.
PROCESS_GROUP_TIMEOUT = timedelta(hours=6)

# What a launcher sets if it wants the weights of a network split over devices.
SPLITTING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")


def check_accelerator(args: DPCurriculumConfig) -> None:
    """Refuse, before any process is joined, what this machine or its launcher cannot do.

    Args:
        args (`DPCurriculumConfig`): `mixed_precision` and `logger` are used.

    Raises:
        InputError: If the machine does not support the precision, the package of the logger is not installed, the
            launcher splits networks over devices, or the process has trained with another precision.
    """
    check_logger(args.logger)
    if split := [name for name in SPLITTING if parse_flag_from_env(f"ACCELERATE_USE_{name}")]:
        raise InputError(
            f"The launcher splits the network over devices ({split[0]}), and per-record gradients need all of it: "
            "choose data parallelism in `accelerate config`."
        )
    # Checked before the accelerator is created, because Accelerate keeps the first precision for the whole process.
    precision = args.mixed_precision or parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no")
    _check_precision(precision, on_cpu=not torch.accelerator.is_available())
    existing = AcceleratorState().mixed_precision if is_initialized() else args.mixed_precision
    if args.mixed_precision not in (None, existing):
        raise InputError(
            f"This process already trains with `mixed_precision` {existing}, which Accelerate cannot change: use that, "
            "or start a new process, in a notebook by restarting the kernel."
        )


def make_accelerator(args: DPCurriculumConfig) -> Accelerator:
    """Create the accelerator of a run, which joins the processes that the launcher has started.

    Args:
        args (`DPCurriculumConfig`): `mixed_precision`, `logger`, `logging_dir` and `output_dir` are used.

    Raises:
        InputError: For the reasons of [`check_accelerator`], or if training would run on Apple's GPU, which has no
            float64.
    """
    check_accelerator(args)
    long_timeout = InitProcessGroupKwargs(timeout=PROCESS_GROUP_TIMEOUT)
    try:
        accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            cpu=not torch.accelerator.is_available(),
            kwargs_handlers=[long_timeout],
            log_with=args.logger,
            project_dir=RunPaths(Path(args.output_dir)).private / args.logging_dir,
        )
    except Exception as error:  # of many types, for what a launcher or `accelerate config` asks for
        raise InputError(
            f"Accelerate cannot start ({type(error).__name__}: {first_line(error)}): correct what the launcher or "
            "`accelerate config` sets."
        ) from error
    if accelerator.device.type == "mps":
        raise InputError(
            "DP noise needs float64, which Apple's GPU has not: set ACCELERATE_USE_CPU=true to train on the CPU."
        )
    # Without this, the first process that exits breaks the connections of the others.
    atexit.register(accelerator.state.destroy_process_group)
    # Check what Accelerate really chose: an existing AcceleratorState or the launcher may override the config.
    _check_precision(accelerator.mixed_precision, on_cpu=accelerator.device.type == "cpu")
    start_heartbeat()
    return accelerator


def start_trackers(accelerator: Accelerator, args: DPCurriculumConfig) -> None:
    """Start the logger of a run, before any record is read.

    Args:
        accelerator (`Accelerator`): The accelerator of the run.
        args (`DPCurriculumConfig`): The config of the run, whose hyper-parameters are logged.

    Raises:
        InputError: If the logger cannot start, such as one that needs a login.
    """
    plain = {name: str(value) for name, value in args.hyper_parameters().items()}
    try:
        accelerator.init_trackers("dp-curriculum", config=plain)
    except Exception as error:  # of many types, from the package of the logger
        accelerator.trackers = []  # it could not be closed either
        raise InputError(
            f"The logger {args.logger} cannot start ({type(error).__name__}: {first_line(error)}): correct what it "
            "says, or resume with another `logger`."
        ) from error


def _check_precision(mixed_precision: str, on_cpu: bool) -> None:
    if mixed_precision not in LOSS_SCALES:
        raise InputError(f"`mixed_precision` is {mixed_precision}, which is not supported: use no, bf16 or fp16.")
    if mixed_precision == "fp16" and on_cpu:  # Accelerate would silently compute in float32
        raise InputError("`mixed_precision` is fp16, which a CPU does not support: use bf16 or no.")
