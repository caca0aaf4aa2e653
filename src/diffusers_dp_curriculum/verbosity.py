"""How much the library tells a person who runs it, as in the other libraries of Hugging Face.

Modules log with `logging.getLogger(__name__)`; warnings are shown by default. Nothing that is logged may tell of a
record. Accelerate's logger needs an accelerator, which loading data and pushing to the Hub have not; what is logged is
logged by the main process alone in any case.
"""

import logging
import os

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
    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def print_messages() -> None:
    """Print messages to standard output as they are, from information on unless another verbosity has been set."""
    library = logging.getLogger(__package__)
    if library.level == logging.NOTSET:
        library.setLevel(logging.INFO)
    if not any(isinstance(handler, _Printing) for handler in library.handlers):
        library.addHandler(_Printing())


if os.environ.get(VARIABLE):
    set_verbosity(os.environ[VARIABLE])
