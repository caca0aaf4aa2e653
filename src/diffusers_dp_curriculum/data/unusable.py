"""Records and files that cannot be used: counted by reason in a message, and listed by name for the owner of the data.

Names of files are as sensitive as their contents, and messages are pasted into bug reports. The list is therefore
written to a file that only the owner of the data can read, and the message says where it is.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..errors import InputError


STORED = "stored in the data set"  # instead of the name of a file

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
ANNEX_POINTER = b"/annex/objects/"


class Unusable(Exception):  # noqa: N818 - a reason, which becomes an error only in `refusal`
    """A record or a file cannot be used.

    Args:
        what (`str`): Words that fit after a number, as in "3 damaged".
        remedy (`str`): What to do, as in "repair the damaged ones".
        details (`str`, *optional*): What may tell of the record, for the list alone.
    """

    def __init__(self, what: str, remedy: str, details: str = ""):
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.details = details


def read_file(path: str, size: int = -1) -> bytes:
    """Read a file.

    Args:
        path (`str`): The path of the file.
        size (`int`, *optional*, defaults to -1): The number of bytes to read; all by default.

    Raises:
        Unusable: If the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except FileNotFoundError:
        raise Unusable("missing", "restore the missing files") from None
    except PermissionError:
        raise Unusable("without permission to read them", "make all files readable", path) from None
    except OSError as error:
        raise Unusable(
            f"that the disk does not give ({_reason(error)})", "copy the data set to another disk", str(error)
        ) from None


def check_content(content: bytes) -> None:
    """Refuse content that no format has: nothing, or a pointer to a file that was not fetched.

    Args:
        content (`bytes`): What a file holds, or its first hundred bytes.

    Raises:
        Unusable: If it is empty or a pointer.
    """
    if not content:
        raise Unusable("empty", "restore or remove the empty ones")
    if content.startswith(LFS_POINTER):
        raise Unusable("pointers of Git LFS", "fetch what they point to with git lfs pull")
    if ANNEX_POINTER in content[:100]:
        raise Unusable("pointers of git-annex", "fetch what they point to with git annex get")


def refusal(things: str, checked: int, unusable: Mapping[str, Unusable], first: str = "") -> InputError:
    """Write the list of what cannot be used, and make the error that counts the reasons and says where the list is.

    Args:
        things (`str`): What they are: "images" or "files".
        checked (`int`): How many were looked at.
        unusable (`Mapping[str, Unusable]`): The reason for each that cannot be used, by its name.
        first (`str`, *optional*): The first of them, in words that tell no name.
    """
    reasons = Counter(problem.what for problem in unusable.values())
    counts = ", ".join(f"{number:,} {what}" for what, number in reasons.most_common())
    remedies = "; ".join(dict.fromkeys(problem.remedy for problem in unusable.values()))
    lines = [f"{name}: {problem.what} {problem.details}".rstrip() for name, problem in unusable.items()]
    where = f", the first of which is {first}" if first else ""
    return InputError(
        f"{len(unusable):,} of {checked:,} {things} cannot be used ({counts}){where}: {remedies}; "
        f"{list_for_owner(lines)}."
    )


def list_for_owner(lines: list[str], what: str = "their names are") -> str:
    """Write lines that may tell of records to a file that only its owner can read.

    Args:
        lines (`list[str]`): The lines.
        what (`str`, *optional*): What is in the file, with a verb.

    Returns:
        `str`: Where they are, in words that fit at the end of a message.
    """
    try:
        # `mkstemp` makes a file that nobody but its owner can read.
        descriptor, path = tempfile.mkstemp(prefix="dp-curriculum-unusable-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("\n".join(lines) + "\n")
    except OSError as error:
        return f"a file for further details could not be written ({_reason(error)})"
    return f"{what} in {path}, which only you can read"


def _reason(error: Any) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
