"""SIGTERM, by which a cluster says that it is about to take the machine away."""

import signal
import threading


class TerminationRequest:
    """Notes SIGTERM while the context lasts, instead of ending the process in the middle of a step.

    Python delivers signals to the main thread alone; in another one nothing is noted.
    """

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> "TerminationRequest":
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, *signal_and_frame: object) -> None:
        self.received = True
