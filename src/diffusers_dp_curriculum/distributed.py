"""What the processes of one run, on one machine or several, have to agree on.

One process is the main one: it alone reads for the central images, adds noise, writes the journal and prints. A run of
a single process is its own main one, and nothing here then does anything.
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from accelerate.utils import broadcast, broadcast_object_list, gather_object

from .errors import DPCurriculumError, InputError, TrainingError


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
        DPCurriculumError:
            On every process, if the main one raises one. Any other error of the main process is a [`TrainingError`] on
            the others, and on the main one it is the error itself.
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
    """What the other processes raise when the main one has an error, without anything that is attached to it."""
    if isinstance(error, DPCurriculumError):
        return type(error)(str(error))
    return TrainingError("The main process ended with an error: read what it says.")


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
