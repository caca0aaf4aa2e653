"""Keeps messages of libraries about single records out of the log and the terminal.

Pillow warns about damaged and very large images and logs the metadata that it reads; the C libraries under it write
directly to the terminal; `datasets` logs names of files. Each of these messages reveals something about one record.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def no_messages() -> Iterator[None]:
    """Suppress all warnings and log messages; progress bars and errors are still shown."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(sys.maxsize)  # messages of every level
        try:
            yield
        finally:
            logging.disable(disabled)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppress everything except errors, including what C libraries write to the terminal."""
    with no_messages(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            terminal = os.dup(2)
        except OSError:  # without a terminal, for instance in a service
            yield
            return
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
