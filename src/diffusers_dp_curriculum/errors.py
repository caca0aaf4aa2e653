"""The errors that users see, and a guard that keeps error texts about sensitive records private.

Every error is a [`DPCurriculumError`] of one of four kinds: invalid input, storage, the Hub, or training. Its message
is one sentence that says what is wrong and, after a colon, what to do; it names arguments of Python functions in
backticks. Command-line programs print the message without a traceback.
"""

import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DPCurriculumError(Exception):
    """Base class of all errors that this library raises on purpose.

    Examples:
        >>> from diffusers_dp_curriculum import DPCurriculumError, load_image_dataset
        >>> try:
        ...     dataset = load_image_dataset(train_data_dir="no-such-directory")
        ... except DPCurriculumError as error:
        ...     print(error)
        no-such-directory is not a directory: pass the one that holds the images as `train_data_dir`.
    """


class InputError(DPCurriculumError, ValueError):
    """An argument, a file or a data set that the user gave cannot be used.

    Input is checked as early as possible, before any privacy is spent and before anything is overwritten.

    Examples:
        >>> from diffusers_dp_curriculum import PrivacyLedger
        >>> PrivacyLedger(delta=2)
        Traceback (most recent call last):
        ...
        diffusers_dp_curriculum.errors.InputError: `delta` is 2: give a number from 1e-12 to 1, below 1/N.
    """


class StorageError(DPCurriculumError):
    """The disk is full or cannot be written, or a file of a run is damaged or missing.

    Examples:
        >>> from pathlib import Path
        >>> from diffusers_dp_curriculum import PrivacyLedger
        >>> ledger = PrivacyLedger(delta=1e-5, journal="journal.jsonl")
        >>> ledger.close()
        >>> Path("journal.jsonl").write_text("cut off")
        7
        >>> PrivacyLedger.resume("journal.jsonl", position=0)
        Traceback (most recent call last):
        ...
        diffusers_dp_curriculum.errors.StorageError: The last line of journal.jsonl is cut off: ...
    """


class HubError(DPCurriculumError):
    """The Hub (or another server) cannot be reached, or refuses a request.

    Examples:
        >>> from diffusers_dp_curriculum import HubError
        >>> def push(trainer):
        ...     try:
        ...         return trainer.push_to_hub()
        ...     except HubError as error:
        ...         print(f"{error} The run is complete: push again with `dp-curriculum push`.")
    """


class TrainingError(DPCurriculumError, RuntimeError):
    """Training ended with an unexpected error.

    The text of that error may reveal something about sensitive records, so this message leaves it out and says where it
    is.

    Examples:
        >>> from pathlib import Path
        >>> from diffusers_dp_curriculum.errors import confidential_errors
        >>> with confidential_errors(Path("private/error.txt")):
        ...     raise ValueError("a batch of 17 records")
        Traceback (most recent call last):
        ...
        diffusers_dp_curriculum.errors.TrainingError: Training broke off with a ValueError, ...
    """


def first_line(error: Exception) -> str:
    """The beginning of another library's message, which fits into a sentence of ours.

    Args:
        error (`Exception`): The error, whose text must not tell of records.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return textwrap.shorten(lines[0], 120, placeholder=" ...").rstrip(".:") if lines else "no message"


@contextmanager
def confidential_errors(path: Path) -> Iterator[None]:
    """Write the traceback of an unexpected error to the file `path`, and raise a [`TrainingError`] that names the file.

    PyTorch's messages can tell how many records a batch had, and logs are pasted into bug reports.
    """
    try:
        yield
    except DPCurriculumError as error:
        raise error from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None  # without its context, which may be an error about records
    except Exception as error:
        where = f"it is in {path}; read it before you pass it on"
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # another machine of the run may not have it yet
            path.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
        except OSError:
            where = f"it is lost, since {path} could not be written"
        raise TrainingError(
            f"Training broke off with a {type(error).__name__}, whose text may tell of sensitive records: {where}."
        ) from None
