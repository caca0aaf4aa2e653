"""How much the library logs, set as in other Hugging Face libraries.

Modules log with `logging.getLogger(__name__)`; warnings are shown by default. A log message must not reveal anything
about a record. Accelerate's logger needs an accelerator, which does not exist while data is loaded or a model is
pushed; only the main process logs in any case.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import InputError


LEVELS = ("debug", "info", "warning", "error")
VARIABLE = "DP_CURRICULUM_VERBOSITY"


def set_verbosity(level: str) -> None:
    """Set the lowest level of messages that are shown, as the environment variable `DP_CURRICULUM_VERBOSITY` does.

    Messages go to the logging handlers of the program, or to standard error if it has set up none.

    Args:
        level (`str`): `"debug"`, `"info"`, `"warning"` (the default) or `"error"`.

    Raises:
        InputError: If `level` is none of these.

    Examples:
        >>> import logging
        >>> from diffusers_dp_curriculum import set_verbosity
        >>> set_verbosity("error")
        >>> logging.getLogger("diffusers_dp_curriculum.trainer").isEnabledFor(logging.WARNING)
        False
    """
    if level not in LEVELS:
        raise InputError(f'The verbosity is "{level}": choose one of {", ".join(LEVELS)}.')
    library = logging.getLogger(__package__)
    library.setLevel(level.upper())
    if not library.hasHandlers():
        library.addHandler(logging.StreamHandler())


class _Printing(logging.Handler):
    def __init__(self, rewrite: Callable[[str], str]):
        super().__init__()
        self.rewrite = rewrite

    def emit(self, record: logging.LogRecord) -> None:
        print(self.rewrite(self.format(record)), flush=True)


@contextmanager
def printed_messages(rewrite: Callable[[str], str]) -> Iterator[None]:
    """Print messages to standard output without a prefix, from level `info` unless another verbosity has been set.

    They are printed there alone: Opacus, for one, makes the root logger print everything to standard error.

    Args:
        rewrite (`Callable[[str], str]`): Turns each message into the text that is printed.
    """
    library = logging.getLogger(__package__)
    before = library.level, library.handlers, library.propagate
    if library.level == logging.NOTSET:
        library.setLevel(logging.INFO)
    library.handlers, library.propagate = [_Printing(rewrite)], False
    try:
        yield
    finally:
        level, library.handlers, library.propagate = before
        library.setLevel(level)


if level := os.environ.get(VARIABLE):
    try:
        set_verbosity(level)
    except InputError as error:  # while the package is imported, which nothing could catch
        logging.getLogger(__package__).warning("%s is ignored. %s", VARIABLE, error)
