"""Communication between the processes of one run, on one machine or several.

One process is the main process: it alone makes the queries of the warm-up stages, adds noise, writes the journal and
prints. A run with a single process communicates nothing.
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object

from .errors import DPCurriculumError, InputError, TrainingError


Result = TypeVar("Result")


def process_index() -> int:
    """The rank of this process; the main process has rank 0."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def num_processes() -> int:
    """The number of processes of the run."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def run_on_main_process(function: Callable[[], Result]) -> Result:
    """Call `function` on the main process only, and return its result on every process.

    Raises:
        DPCurriculumError:
            On every process, if `function` raises one. Any other error of `function` is raised unchanged on the main
            process and as a [`TrainingError`] on the others.
    """
    if num_processes() == 1:
        return function()
    outcome: list[tuple[Result | None, DPCurriculumError | None]] = [(None, None)]
    error = None
    if process_index() == 0:
        try:
            outcome = [(function(), None)]
        except Exception as caught:
            error = caught
            outcome = [(None, _for_other_processes(caught))]
    result, reported = broadcast_object_list(outcome)[0]
    if error is not None:
        raise error
    if reported is not None:
        raise reported
    return result


def _for_other_processes(error: Exception) -> DPCurriculumError:
    """The error that the other processes raise when the main one fails, without its traceback and causes."""
    if isinstance(error, DPCurriculumError):
        return type(error)(str(error))
    return TrainingError("The main process ended with an error: read what it says.")


def set_on_any_process(*flags: bool | torch.Tensor) -> list[bool]:
    """Whether each flag is set on at least one process; every process gets the same answers.

    The processes exchange numbers, without pickling them, and the CPU waits for its GPU once, however many flags it
    asks for.

    Args:
        *flags (`bool` or `torch.Tensor`): The flags of this process; tensors of one truth value, on its device.
    """
    devices = [flag.device for flag in flags if not isinstance(flag, bool)]
    if num_processes() == 1 and not devices:
        return [bool(flag) for flag in flags]
    device = devices[0] if devices else PartialState().device
    # A tensor that is filled takes no copy from main memory, for which the CPU would wait as well.
    tensors = [torch.full((), flag, device=device) if isinstance(flag, bool) else flag for flag in flags]
    numbers = torch.stack(tensors).int()
    if num_processes() > 1:
        torch.distributed.all_reduce(numbers, op=torch.distributed.ReduceOp.MAX)
    return [number > 0 for number in numbers.tolist()]


def check_all_equal(value: Hashable, what: str) -> None:
    """Refuse to continue where the processes have different values.

    Raises:
        InputError: On every process, if the values differ.
    """
    if num_processes() > 1 and len(set(gather_object([value]))) > 1:
        raise InputError(f"The processes of this run do not have the same {what}: give every machine the same.")


def share_parameters(model: torch.nn.Module) -> None:
    """Copy the main process's parameters and buffers to every process."""
    if num_processes() > 1:
        broadcast([tensor.data for tensor in (*model.parameters(), *model.buffers())])
