"""The execution of a mechanism: a step is in the ledger before it is taken, and there are no more than planned."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..arithmetic import own_arithmetic
from ..errors import InputError
from .accounting import Mechanism


class Execution:
    """A mechanism that [`PrivacyLedger.begin`] has begun. [`step`] is the only way to execute a step of it.

    Args:
        mechanism (`Mechanism`): The mechanism with all of its steps.
        record (`Callable`): Called with a single step, writes it into the ledger.
    """

    def __init__(self, mechanism: Mechanism, record: Callable[[Mechanism], None]):
        self.mechanism = mechanism
        self.steps_left = mechanism.steps
        self._record = record

    @contextmanager
    def step(self) -> Iterator[None]:
        """Execute one step within this context: it is recorded first, and computed under settings of its own.

        Everything that reads records for a release, and the noise on it, belongs inside the context. A step that raises
        an error has been recorded and stays counted.

        Raises:
            InputError: If all steps have been taken; nothing is recorded then.
        """
        if self.steps_left == 0:
            raise InputError(f"All {self.mechanism.steps} steps have been taken: plan another mechanism for more.")
        self.steps_left -= 1
        self._record(replace(self.mechanism, steps=1))
        with own_arithmetic():
            yield
