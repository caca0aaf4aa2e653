"""Counts the files of a data set that are used, and those that are left out, with the reasons.

Only counts are shown, because names of files are as sensitive as their contents ("patient-4711.png").
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import InputError
from .unusable import list_for_owner


# Only what looks like a suffix is shown: in names such as 1.2.840.4711, the part after the dot identifies a person.
SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,7}")


class FileInventory:
    """The files of a data set, each of which is used unless there is a reason to leave it out.

    Args:
        reasons (`dict[Path, str | None]`):
            For each file the reason to leave it out, such as "hidden"; None if it is used.
    """

    def __init__(self, reasons: dict[Path, str | None]):
        self.reasons = reasons

    @classmethod
    def of_directory(cls, root: Path) -> "FileInventory":
        """List all files below a directory, following links. A hidden directory counts as one file.

        Args:
            root (`Path`): The directory.

        Raises:
            InputError: If a directory cannot be read, because its files would be left out silently.
        """
        try:
            return cls(dict(_walk(root)))
        except OSError as error:
            raise InputError(
                f"A directory in {root} cannot be read ({type(error).__name__}): make all directories readable or move "
                f"them away; {list_for_owner([str(error.filename)])}."
            ) from None

    @classmethod
    def of_names(cls, names: Iterable[str]) -> "FileInventory":
        """List files by their paths in a repository."""
        return cls({Path(name): "hidden" if _is_hidden(*Path(name).parts) else None for name in names})

    @property
    def used(self) -> list[Path]:
        """`list[Path]`: The files that are used."""
        return [path for path, reason in self.reasons.items() if reason is None]

    def leave_out(self, reason: str, condition: Callable[[Path], bool]) -> None:
        """Leave out the used files that satisfy a condition, for the given reason."""
        for path in self.used:
            if condition(path):
                self.reasons[path] = reason

    def left_out_of(self, directory: Path) -> list[Path]:
        """The files in a directory that are left out, except hidden files without suffix, such as `.gitkeep`."""
        return [
            path
            for path, reason in self.reasons.items()
            if reason is not None and path.is_relative_to(directory) and not (reason == "hidden" and not path.suffix)
        ]

    def count(self, paths: Iterable[Path]) -> str:
        """Count files by suffix and by the reason to leave them out, as in "2 .heic, 1 without suffix (hidden)"."""
        by_reason: dict[str | None, Counter[str]] = {}
        for path in paths:
            by_reason.setdefault(self.reasons[path], Counter())[_suffix(path)] += 1
        return "; ".join(
            ", ".join(f"{number:,} {suffix}" for suffix, number in suffixes.most_common())
            + (f" ({reason})" if reason else "")
            for reason, suffixes in by_reason.items()
        )

    def provenance(self) -> dict[str, str]:
        """Lines about the files for the plan, by their titles."""
        used = self.used
        left_out = [path for path, reason in self.reasons.items() if reason is not None]
        files = f"{len(self.reasons):,} found, {len(used):,} used, {len(left_out):,} left out"
        return {"files": files, "used": self.count(used), **({"left out": self.count(left_out)} if left_out else {})}


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if not suffix:
        return "without suffix"
    return suffix if SUFFIX.fullmatch(suffix) else "with another suffix"


def _is_hidden(*names: str) -> bool:
    return any(name.startswith(".") for name in names)


def _walk(root: Path) -> Iterator[tuple[Path, str | None]]:
    visited = set()

    def refuse(error: OSError) -> None:
        raise error

    for directory, subdirectories, names in os.walk(root, followlinks=True, onerror=refuse):
        where = Path(directory)
        real = where.resolve()
        if real in visited:  # a link to a parent would never end, and one image must not become two records
            yield where, "linked to a directory that is read already"
            subdirectories.clear()
            continue
        visited.add(real)
        for name in filter(_is_hidden, subdirectories):
            yield where / name, "hidden"
        subdirectories[:] = sorted(name for name in subdirectories if not _is_hidden(name))
        for name in sorted(names):
            path = where / name
            if _is_hidden(name):
                yield path, "hidden"
            elif path.is_file():
                yield path, None
            else:
                yield path, "linked to nothing" if path.is_symlink() else "no file"
