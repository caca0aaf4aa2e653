"""The journal: the file that knows what a run has released, whatever becomes of the run.

One JSON line an event, synced to disk before the event happens, chained by checksums, and written by one process at a
time. Four kinds of events follow the header:

- `release`: a mechanism is about to be executed;
- `visible`: something that depends on all releases before it is about to be seen by others, for instance a picture;
- `resume`: the run goes on from a checkpoint that was made after the first `position` events;
- `not_private`: the run gives no privacy, for a reason.
"""

import fcntl
import json
import os
import zlib
from pathlib import Path
from typing import Any

from .accounting import Mechanism
from .durable import sync
from .errors import InputError


FORMAT = 1
PAGE = 4096  # bytes; larger pages are multiples of it


class Journal:
    """An open journal, locked for this process until [`close`] or the end of the process.

    Args:
        path (`str` or `Path`): The file.
        header (`dict`, *optional*):
            Starts a new journal with it; an empty file, of a process killed before it wrote its header, counts as none.
            Without it an existing one is gone on with.

    Raises:
        InputError: If a new journal would replace a file, or an existing one is missing, in use or damaged.
    """

    def __init__(self, path: str | Path, header: dict[str, Any] | None = None):
        self.path = Path(path)
        try:
            flags = os.O_RDWR | os.O_APPEND | (os.O_CREAT if header is not None else 0)
            self._file = os.fdopen(os.open(path, flags, 0o600), "r+", encoding="utf-8", errors="replace", newline="\n")
        except FileNotFoundError as error:
            raise InputError(
                f"There is no journal {error.filename} to go on with: give the directory of a run."
            ) from None
        try:
            # The lock belongs to the open file: however the process ends, the operating system lets go of it.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(
                f"Another process is writing {path}, or another trainer in this one: wait for it to end, or end it."
            ) from None
        text = self._file.read()
        try:
            if header is not None and text:
                raise InputError(f"{path} is the journal of another run: choose another directory.")
            self.events = [] if header is not None else _read(text, self.path)
        except InputError:
            self._file.close()
            raise
        if header is not None:
            self.append("header", {"format": FORMAT, **header})
            sync(self.path.parent)

    @property
    def header(self) -> dict[str, Any]:
        """What the journal was started with."""
        return self.events[0]["header"]

    @property
    def position(self) -> int:
        """The number of events so far: what a checkpoint remembers."""
        return len(self.events)

    def append(self, kind: str, content: object) -> None:
        """Write an event; it is on disk when this returns.

        A process killed meanwhile leaves all of its line or none: one call writes it, and it never crosses the border
        of a page, between two of which the operating system may end a killed process.
        """
        event = {"n": len(self.events), kind: content}
        event["check"] = _checksum(event, self.events[-1]["check"] if self.events else 0)
        line = json.dumps(event) + "\n"
        size = os.fstat(self._file.fileno()).st_size
        left_of_page = PAGE - size % PAGE
        if left_of_page < len(line) <= PAGE:
            line = " " * left_of_page + line
        if os.write(self._file.fileno(), line.encode()) < len(line):
            os.ftruncate(self._file.fileno(), size)
            raise InputError(f"The disk of {self.path} is full: make room, and resume the run.")
        os.fsync(self._file.fileno())
        self.events.append(event)

    def counted(self) -> list[Mechanism]:
        """The releases that count, in order.

        Those that the run at its present state is made of do, and those that anything was made of that was seen: a
        picture, or a checkpoint that the run went on from. Others, abandoned unseen, are known to nobody.
        """
        return _counted(self.events)

    def close(self) -> None:
        """Give the lock back."""
        self._file.close()


def read_counted(path: str | Path) -> list[Mechanism]:
    """The releases that count so far, as [`Journal.counted`] has them, of a journal that may be in use.

    It is only read, so this takes no lock. A run that is going on may make further releases the moment after, but what
    it had written anywhere before this call is made of these.

    Args:
        path (`str` or `Path`): The file.

    Raises:
        InputError: If it is damaged.
    """
    path = Path(path)
    return _counted(_read(path.read_bytes().decode("utf-8", errors="replace"), path))


def _counted(events: list[dict[str, Any]]) -> list[Mechanism]:
    last: list[int | None] = [None]  # after so many events: the last release that the run is made of
    before: dict[int, int | None] = {}  # of each release: the one before it, which the run was made of then
    known: set[int] = set()

    def know(release: int | None) -> None:
        while release is not None and release not in known:
            known.add(release)
            release = before[release]

    for number, event in enumerate(events):
        release = last[-1]
        if "release" in event:
            before[number] = release
            release = number
        elif "visible" in event:
            know(release)
        elif "resume" in event:
            release = last[event["resume"]["position"]]
            know(release)
        last.append(release)
    know(last[-1])
    return [Mechanism(**events[number]["release"]) for number in sorted(known)]


def _read(text: str, path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            event = json.loads(line)
            previous = events[-1]["check"] if events else 0
            intact = event["n"] == len(events) and event["check"] == _checksum(event, previous)
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise InputError(
                f"Line {number} of {path} is damaged, so what the run has released is not known: restore the file from "
                "a backup, or give the run up and count all of its target epsilon as spent."
            )
        events.append(event)
    if lines[-1].strip():
        # No kill does this (see `append`): the machine failed before what the line announces began, or the file was
        # damaged since. Which of them is for a person to say.
        raise InputError(
            f"The last line of {path} is cut off: if the machine failed during the run, delete that line (what it "
            "announces had not begun) and go on; otherwise restore the file from a backup."
        )
    if not events or events[0].get("header", {}).get("format") != FORMAT:
        raise InputError(f"{path} is not a journal of this version: go on with the version that wrote it.")
    return events


def _checksum(event: dict[str, Any], previous: int) -> int:
    content = {name: value for name, value in event.items() if name != "check"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode(), previous)
