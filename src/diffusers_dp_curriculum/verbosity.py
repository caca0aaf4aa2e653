"""How much the library tells a person who runs it, as in the other libraries of Hugging Face.

Modules log with `logging.getLogger(__name__)`; warnings are shown by default. Nothing that is logged may tell of a
record. Accelerate's logger needs an accelerator, which loading data and pushing to the Hub have not; what is logged is
logged by the main process alone in any case.
"""

import logging
import os
from collections.abc import Callable

from .errors import InputError


LEVELS = ("debug", "info", "warning", "error")
VARIABLE = "DP_CURRICULUM_VERBOSITY"


def set_verbosity(level: str) -> None:
    """Set from which level on messages are shown; the environment variable `DP_CURRICULUM_VERBOSITY` does the same.

    They go to the handlers of the program, if it has set up logging, and otherwise to standard error.

    Args:
        level (`str`): `"debug"`, `"info"`, `"warning"` (as by default) or `"error"`.

    Raises:
        InputError: If there is no such level.
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


def print_messages(rewrite: Callable[[str], str]) -> None:
    """Print messages to standard output, information included unless another verbosity has been set.

    Args:
        rewrite (`Callable[[str], str]`): Makes of a message what is printed.
    """
    library = logging.getLogger(__package__)
    if library.level == logging.NOTSET:
        library.setLevel(logging.INFO)
    library.handlers = [handler for handler in library.handlers if not isinstance(handler, _Printing)]
    library.addHandler(_Printing(rewrite))


if os.environ.get(VARIABLE):
    set_verbosity(os.environ[VARIABLE])
