"""Counts the files of a data set that are used, and those that are left out, with the reasons.

The inventory is made before anything is decoded. Files that are left out although they may be records are refused.
Only counts are shown, because names of files are as sensitive as their contents ("patient-4711.png").
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import InputError
from ..files import is_left_behind
from ..run_paths import RunPaths
from .unusable import list_for_owner


# Only what looks like a suffix is shown: in names such as 1.2.840.4711, the part after the dot identifies a person.
SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,7}")

LEFT_BY_A_TOOL = "left by a tool"

# Reasons to leave out a file that may be a record, or that may say what the records are.
UNREADABLE = "in no format that Pillow reads"
UNKNOWN = "with no suffix of a format"
NO_TEXT = "with a name that is not in UTF-8"
UNFETCHED = "linked to nothing"
TWICE = "the same file as one that is read already"
UNNAMED = "not named in the metadata"
OTHER_FORMAT = "beside files of another format, which are read"
NOT_LOADED = "not loaded by `datasets`"
METADATA_ELSEWHERE = "metadata, but not in the directory of the split"
MAY_BE_RECORDS = {UNREADABLE, UNKNOWN, NO_TEXT, UNFETCHED, TWICE, UNNAMED, OTHER_FORMAT, NOT_LOADED, METADATA_ELSEWHERE}

# Texts and tables that lie beside images, and are no images whatever they hold.
DOCUMENT_SUFFIXES = {
    *(".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg"),
    *(".html", ".log", ".py", ".ipynb", ".sh", ".bib", ".cff", ".md5", ".sha1", ".sha256", ".lock"),
}
DOCUMENT_NAMES = {
    "_success",
    "_metadata",
    "_common_metadata",
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "changelog",
    "authors",
    "citation",
    "makefile",
}


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
        paths = {Path(name): map(reason_to_ignore, Path(name).parts) for name in names}
        return cls({path: next(filter(None, reasons), None) for path, reasons in paths.items()})

    @property
    def used(self) -> list[Path]:
        """`list[Path]`: The files that are used."""
        return [path for path, reason in self.reasons.items() if reason is None]

    def leave_out_unreadable(self, can_be_read: Callable[[Path], bool]) -> None:
        """Leave out the used files that cannot be read; what is a text or a table by its name is a document."""
        self.leave_out("documents", lambda path: not can_be_read(path) and is_document(path))
        self.leave_out(UNKNOWN, lambda path: not can_be_read(path) and not SUFFIX.fullmatch(path.suffix.lower()))
        self.leave_out(UNREADABLE, lambda path: not can_be_read(path))
        self.leave_out(NO_TEXT, lambda path: not _is_text(str(path)))  # `datasets` stores names as UTF-8

    def check_nothing_is_lost(self, accept: bool = False) -> None:
        """Refuse to load a part of the records without a word.

        Args:
            accept (`bool`, *optional*, defaults to False): Whether to accept that files are left out.

        Raises:
            InputError: If files are left out that may be records, and this is not accepted.
        """
        lost = [path for path, reason in self.reasons.items() if reason in MAY_BE_RECORDS]
        if lost and not accept:
            raise InputError(
                f"Files that may be records would be left out, {self.count(lost)}: convert, unpack, rename or fetch "
                "them, move them elsewhere, or pass `accept_left_out_files` to load the data set without them."
            )

    def check_no_output(self, root: Path) -> None:
        """Refuse directories that hold the output of a run, whose pictures are no records.

        Args:
            root (`Path`): The directory of the data set. A generated data set has a privacy.json of its own.

        Raises:
            InputError: If a run, a generated data set or a part of either is among the files.
        """
        with_files = {path.parent for path in self.reasons}
        for directory in sorted(with_files | {directory.parent for directory in with_files}):
            run = RunPaths(directory)
            if run.journal in self.reasons or (directory != root and run.privacy_json in self.reasons):
                raise InputError(
                    f"{directory} holds the output of a run, whose pictures would be taken for records: move it "
                    f"out of {root}, or pass another directory as `train_data_dir`."
                )

    def leave_out(self, reason: str, condition: Callable[[Path], bool]) -> None:
        """Leave out the used files that satisfy a condition, for the given reason."""
        for path in self.used:
            if condition(path):
                self.reasons[path] = reason

    def left_out_of(self, directory: Path) -> list[Path]:
        """The files in a directory that are left out, except those that tools leave, and files such as `.gitkeep`."""
        return [
            path
            for path, reason in self.reasons.items()
            if reason not in (None, LEFT_BY_A_TOOL)
            and path.is_relative_to(directory)
            and not (reason == "hidden" and not path.suffix)
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


def is_document(path: Path) -> bool:
    """Whether a file is a text or a table by its name, and so no image."""
    return path.suffix.lower() in DOCUMENT_SUFFIXES or path.stem.lower() in DOCUMENT_NAMES


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if not suffix:
        return "without suffix"
    return suffix if SUFFIX.fullmatch(suffix) else "with another suffix"


def reason_to_ignore(name: str) -> str | None:
    """The reason to leave out a file or directory because of its name; None if there is none."""
    if name.startswith("."):
        return "hidden"
    return LEFT_BY_A_TOOL if is_left_behind(name) else None


def _walk(root: Path) -> Iterator[tuple[Path, str | None]]:
    visited = set(root.resolve().parents)  # a link to one of them would add what is not of this data set
    files = set()

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
        for name in sorted(subdirectories):
            if reason := reason_to_ignore(name):
                yield where / name, reason
        subdirectories[:] = sorted(name for name in subdirectories if not reason_to_ignore(name))
        for name in sorted(names):
            path = where / name
            if reason := reason_to_ignore(name):
                yield path, reason
            elif path.is_file():
                real_file = path.stat()
                identity = (real_file.st_dev, real_file.st_ino)
                yield path, TWICE if identity in files else None
                if real_file.st_ino:  # some network drives number no files
                    files.add(identity)
            else:
                yield path, UNFETCHED if path.is_symlink() else "no file"
