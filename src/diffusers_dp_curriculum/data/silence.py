"""Keeping what libraries say of single records out of the log and the terminal.

Pillow warns of a damaged or very large image, logs the metadata that it reads, and the C libraries below it write to
the terminal without asking Python; `datasets` logs the names of files. Each of that tells of one record.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def no_messages() -> Iterator[None]:
    """Drop all warnings and log messages; progress bars and errors stay."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(sys.maxsize)  # of whatever level they are
        try:
            yield
        finally:
            logging.disable(disabled)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop everything but errors, and what libraries in C write to the terminal as well."""
    with no_messages(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            terminal = os.dup(2)
        except OSError:  # there is none, as in a service
            yield
            return
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
