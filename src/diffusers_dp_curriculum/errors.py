"""The errors that a user is meant to read, and the keeping of those that nobody else may.

All of them are a [`DPCurriculumError`], of one of four kinds: what the user gave, what the disk did, what the Hub did,
and what training did. The message is one sentence that says what is wrong and, after a colon, what to do about it; it
names arguments of Python functions in backticks. Command-line programs print it without a traceback.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DPCurriculumError(Exception):
    """Base class of all errors that this library raises on purpose."""


class InputError(DPCurriculumError, ValueError):
    """Something the user gave cannot be used.

    What can be known beforehand is refused before any privacy is spent and before anything is overwritten.
    """


class StorageError(DPCurriculumError):
    """The disk is full or cannot be written, or a file of a run is damaged or missing."""


class HubError(DPCurriculumError):
    """The Hub, or another server, is out of reach, or does not give or take what it is asked to."""


class TrainingError(DPCurriculumError, RuntimeError):
    """Training ended with an unexpected error, whose text may tell of sensitive records and is kept from this one."""


@contextmanager
def confidential_errors(path: Path) -> Iterator[None]:
    """Keep what an unexpected error says in the file `path`, and raise a [`TrainingError`] that says only where.

    PyTorch's messages can tell how many records a batch had, and logs are pasted into bug reports.
    """
    try:
        yield
    except DPCurriculumError as error:
        raise error from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None  # whatever it interrupted the handling of
    except Exception as error:
        where = f"it is in {path}; read it before you pass it on"
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # a further machine may have none yet
            path.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
        except OSError:
            where = f"it is lost, since {path} could not be written"
        raise TrainingError(
            f"Training broke off with a {type(error).__name__}, whose text may tell of sensitive records: {where}."
        ) from None
