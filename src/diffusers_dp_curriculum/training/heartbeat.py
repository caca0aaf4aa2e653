"""The processes of a run hear each other's heartbeats: if one dies, the others end within a minute and say so.

A process that waits for another one cannot tell one that is dead from one that decodes, plans, samples or saves for
hours. gloo notices when a process on a reachable machine dies, because the connection closes. Nothing notices a process
that is stopped, a machine without power or, with nccl, a process that ended with an error; the timeout of collective
operations would end the run after hours.

So each process has a thread that counts in the key-value store of the launch, through a connection of its own. It
counts on whatever the process does. Silence means that the process is dead, stopped or cut off, or that it left the run
with an error.
"""

import atexit
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from ..distributed import num_processes, process_index
from ..errors import DPCurriculumError, TrainingError


logger = logging.getLogger(__name__)

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 40.0  # no process on a busy machine is silent for that long
SILENCE_AFTER_ERROR_SECONDS = 12.0  # torchrun kills the other processes 30 seconds after one has died
STORE_TIMEOUT = timedelta(seconds=10)


class Heartbeat:
    """The heartbeat of this process, which also listens to all others.

    Args:
        store (`torch.distributed.Store`): The key-value store that all processes reach.
        rank (`int`): The rank of this process.
        count (`int`): The number of processes.
    """

    def __init__(self, store: torch.distributed.Store, rank: int, count: int):
        self.store = store
        self.rank = rank
        self.others = [other for other in range(count) if other != rank]
        self.is_watching = False
        self._beats = 0
        self._last: dict[int, bytes] = {}
        self._heard: dict[int, float] = {}  # when the last beat of each process that has begun was heard
        self._beats_heard = dict.fromkeys(self.others, 0)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Fall silent, after which the others end if they still watch."""
        self._stopped.set()
        self._thread.join()

    @property
    def is_stopped(self) -> bool:
        """`bool`: Whether this process has fallen silent."""
        return self._stopped.is_set()

    def silent_process(self, seconds: float) -> int | None:
        """The first process that has not been heard of for some seconds; None if there is none."""
        now = time.monotonic()
        return next((other for other in self.others if now - self._heard.get(other, now) > seconds), None)

    def silent_process_after_error(self) -> int | None:
        """The first process that is silent from now on; None as soon as all others have been heard."""
        before, start = dict(self._beats_heard), time.monotonic()
        silent = [] if self.is_stopped else self.others
        while silent and time.monotonic() - start < SILENCE_AFTER_ERROR_SECONDS:
            time.sleep(BEAT_SECONDS / 4)
            # The first beat that is heard may be from before the error.
            silent = [other for other in self.others if self._beats_heard[other] < before[other] + 2]
        return silent[0] if silent else None

    def _run(self) -> None:
        while True:
            self._beat_and_listen()
            if self.is_watching and (silent := self.silent_process(SILENCE_SECONDS)) is not None:
                # The main thread is in a collective operation, which nothing can interrupt. All that it had to write
                # is on disk: it is as if the power had been cut.
                logger.error(_sentence(silent))
                logging.shutdown()
                os._exit(1)
            if self._stopped.wait(BEAT_SECONDS):
                return

    def _beat_and_listen(self) -> None:
        self._beats += 1
        try:
            self.store.set(str(self.rank), str(self._beats))
            counts = self.store.multi_get([str(other) for other in self.others])
        except RuntimeError:  # not all have begun; or the machine of the main process is gone, and all are silent
            return
        for other, count in zip(self.others, counts, strict=True):
            if count != self._last.get(other):
                self._last[other], self._heard[other] = count, time.monotonic()
                self._beats_heard[other] += 1


_heartbeat: Heartbeat | None = None


def start_heartbeat() -> None:
    """Start the heartbeat of this process, once, and watch the others from now on.

    Without the address of a store in the environment, as every launcher sets it, there is no heartbeat.
    """
    global _heartbeat
    if num_processes() == 1 or "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        return
    if _heartbeat is None or _heartbeat.is_stopped:
        # A connection of its own: over the one of the process group, a process may wait for hours.
        store = torch.distributed.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=STORE_TIMEOUT,
            wait_for_workers=False,
        )
        named = torch.distributed.PrefixStore("dp_curriculum/heartbeat", store)
        _heartbeat = Heartbeat(named, process_index(), num_processes())
        atexit.register(_heartbeat.stop)
    _heartbeat.is_watching = True


def stop_watching() -> None:
    """Go on without the others, which may end from now on."""
    if _heartbeat is not None:
        _heartbeat.is_watching = False


@contextmanager
def watched_processes() -> Iterator[None]:
    """A context in which the processes need each other: this one ends if another one dies, stops or fails.

    Raises:
        TrainingError: If communication fails because another process has died. A process that waits for a silent one
            is ended, after it has logged the same sentence.
    """
    if _heartbeat is None:
        yield
        return
    before, _heartbeat.is_watching = _heartbeat.is_watching, True
    try:
        yield
    except DPCurriculumError:
        _heartbeat.stop()
        raise
    except Exception as error:
        silent = _heartbeat.silent_process_after_error()
        _heartbeat.stop()
        if silent is None:
            raise
        raise TrainingError(_sentence(silent)) from error
    except BaseException:
        _heartbeat.stop()
        raise
    finally:
        _heartbeat.is_watching = before


def _sentence(silent: int) -> str:
    return (
        f"Process {silent} of this run has died, stopped or cannot be reached, and the others cannot continue without "
        "it: start all of them again, with the same settings and `resume_from_checkpoint` latest."
    )
