"""SIGTERM, by which a cluster says that it is about to take the machine away, and Ctrl-C."""

import os
import signal
import threading
from enum import Enum


class RunStatus(Enum):
    """How a call of [`DPCurriculumTrainer.train`] ended.

    Examples:
        >>> from diffusers_dp_curriculum import RunStatus
        >>> def report(trainer):
        ...     if trainer.train() is RunStatus.FINISHED:
        ...         trainer.save_pipeline()
        ...     else:
        ...         print("Resume with `resume_from_checkpoint` latest.")
    """

    FINISHED = "finished"
    TERMINATED = "terminated"  # by SIGTERM, with a checkpoint
    INTERRUPTED = "interrupted"  # by Ctrl-C, with a checkpoint


class TerminationRequest:
    """Notes SIGTERM and Ctrl-C during the context, instead of ending the process in the middle of a step.

    Ctrl-C pressed again does not wait any longer: it raises `KeyboardInterrupt` wherever the program is. Python
    delivers signals to the main thread alone; in another one nothing is noted.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "TerminationRequest":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if number == signal.SIGINT:
            if self.signal == number:
                raise KeyboardInterrupt
            # `print` is not made to be called while another one is running, as it may be here.
            os.write(2, b"\nCtrl-C: stopping after this step, with a checkpoint. Press it again to stop at once.\n")
        self.signal = number
