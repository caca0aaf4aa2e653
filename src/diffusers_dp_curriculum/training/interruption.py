"""Handles SIGTERM, which a cluster sends before it takes the machine away, and Ctrl-C."""

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
    """A context that records SIGTERM and Ctrl-C instead of ending the process in the middle of a step.

    A second Ctrl-C raises `KeyboardInterrupt` at once. Python delivers signals only to the main thread; in any other
    thread this context does nothing.

    Attributes:
        signal (`int`, *optional*): The number of the last signal; None if there was none.
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
            # A signal handler may run in the middle of a `print`, which does not allow a second one to be nested in it.
            os.write(2, b"\nCtrl-C: stopping after this step, with a checkpoint. Press it again to stop at once.\n")
        self.signal = number
