"""The journal: the file that records what a run has released, however the run ends.

It has one JSON line per event, is synced to disk before the event happens, chains its lines by checksums, and is
written by one process at a time. Four kinds of events follow the header:

- `release`: a mechanism is about to be executed. It counts from here on, unless the event says `unseen`: then nothing
  that depends on the release leaves the process before a `visible` event;
- `visible`: something that depends on the releases before it is about to leave the process, for instance a checkpoint
  or a picture, or control is about to return to the caller, who can look at the network in memory;
- `resume`: a new session of the run starts from the checkpoint that was made after the first `position` events;
- `not_private`: the run gives no privacy, for the reason that the event states.

Only a process that is killed without warning (SIGKILL, a power cut) leaves unseen releases behind. The next `resume`
drops them, since nothing that depends on them exists any more.
"""

import errno
import json
import os
import secrets
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import InputError, StorageError, first_line
from ..files import sync
from .accounting import Mechanism


FORMAT = 2
OLDER_FORMATS = (1,)  # can be read, not resumed: they have no names of runs and sessions, and no `unseen`
PAGE = 4096  # bytes; larger pages are multiples of it
RESERVE_BYTES = 16 * PAGE


class Journal:
    """An open journal, locked for this process until [`close`] or the end of the process.

    Args:
        path (`str` or `Path`): The file.
        header (`dict`, *optional*):
            The header of a new journal. An empty file, left by a process that was killed before it wrote its header,
            counts as no file. Without a header, an existing journal is opened for appending.

    Raises:
        InputError: If a new journal would replace a file, or an existing one is missing, in use or of another version.
        StorageError: If an existing journal is damaged, or the disk is full.
    """

    def __init__(self, path: str | Path, header: dict[str, Any] | None = None):
        self.path = Path(path)
        try:
            flags = os.O_RDWR | os.O_APPEND | (os.O_CREAT if header is not None else 0)
            # Windows alone has, and needs, the flag by which line ends are written as they are.
            flags |= getattr(os, "O_BINARY", 0)
            self._file = os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0)
        except FileNotFoundError as error:
            raise InputError(f"There is no journal {error.filename} to resume: give the directory of a run.") from None
        # The lock is on a file beside the journal, because on Windows a locked file cannot be read. However the process
        # ends, the operating system releases the lock. Any thread may close the journal.
        self._lock = FileLock(self.path.with_suffix(".lock"), mode=0o600, thread_local=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            self._file.close()
            raise InputError(
                f"Another process is writing {path}, or another trainer in this one: wait for it to end, or end it "
                "(in a notebook by `del`)."
            ) from None
        except (OSError, NotImplementedError) as error:  # of file systems of a network or a cloud
            self._file.close()
            raise StorageError(
                f"{path} cannot be locked ({first_line(error)}): choose an output directory on a disk that has locks."
            ) from error
        try:
            if header is not None and self._size() > 0:
                raise InputError(f"{path} is the journal of another run: choose another directory.")
            self._reserve()
            self.events: list[dict[str, Any]] = []
            self._known_size = 0
            if header is None:
                self._read_again()
            else:
                run = {"run": secrets.token_hex(8), "session": secrets.token_hex(8)}
                self.append("header", {"format": FORMAT, **run, **header})
                sync(self.path.parent)
        except BaseException:
            self.close()
            raise

    @property
    def header(self) -> dict[str, Any]:
        """The settings of the run when the journal was started."""
        return self.events[0]["header"]

    @property
    def position(self) -> int:
        """The number of events so far, which a checkpoint keeps."""
        return len(self.events)

    @property
    def check(self) -> int:
        """The checksum of all events so far, which tells this journal from others of the same length."""
        return self.events[-1]["check"]

    def release(self, mechanism: Mechanism, unseen: bool) -> None:
        """Write that `mechanism` is about to be executed.

        Args:
            mechanism (`Mechanism`): The mechanism, with the number of steps to record.
            unseen (`bool`):
                Whether the caller promises a `visible` event before anything that depends on the release leaves the
                process.
        """
        self.append("release", {**asdict(mechanism), "unseen": unseen})

    def resume(self, position: int, check: int | None = None) -> None:
        """Write that a new session starts from the checkpoint that was made at `position`.

        Args:
            position (`int`): The journal's [`position`] when the checkpoint was made.
            check (`int`, *optional*): The journal's [`check`] at that time.

        Raises:
            InputError: If the checkpoint was made by a copy of the run.
            StorageError: If the journal ends before the checkpoint was made.
        """
        if position > self.position:
            raise StorageError(
                f"{self.path} ends before the checkpoint was made ({self.position} events of {position}), as lines are "
                "missing: restore it from a backup, or give the run up and count all of its target epsilon."
            )
        if check is not None and self.events[position - 1]["check"] != check:
            raise InputError(
                f"The checkpoint is of a copy of this run that was resumed elsewhere, and {self.path} knows nothing of "
                "its steps: resume it where it was made, or from a checkpoint of this run."
            )
        self.append("resume", {"position": position, "session": secrets.token_hex(8)})

    def append(self, kind: str, content: object) -> None:
        """Write an event; it is on disk when this returns.

        A process that is killed while it writes leaves the whole line or nothing: one system call writes the line, and
        it never crosses the boundary between two pages, where the operating system may stop a killed process.
        """
        if self._size() != self._known_size:  # the previous call was interrupted, by Ctrl-C for instance
            self._read_again()
        event = {"n": len(self.events), kind: content}
        event["check"] = _checksum(event, self.events[-1]["check"] if self.events else 0)
        line = json.dumps(event) + "\n"
        left_of_page = PAGE - self._known_size % PAGE
        if left_of_page < len(line) <= PAGE:
            line = " " * left_of_page + line
        if not self._write(line) and not (kind == "visible" and self._free_reserve() and self._write(line)):
            raise StorageError(f"The disk of {self.path} is full: make room, and resume the run.")
        self.events.append(event)
        self._known_size += len(line)

    def counted(self) -> list[Mechanism]:
        """The releases that count, in order.

        A release counts if the present state of the run depends on it, or anything that could be seen. Other releases
        were lost with their process, and nothing depends on them.
        """
        return _counted(self.events)

    def close(self) -> None:
        """Close the file, and release the lock."""
        self._file.close()
        self._lock.release()

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _read_again(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        self.events = _read(content.decode("utf-8", errors="replace"), self.path)
        self._known_size = len(content)

    def _write(self, line: str) -> bool:
        """Write a whole line to disk, or nothing if the disk is full; return whether there was room."""
        try:
            if os.write(self._file.fileno(), line.encode()) == len(line):
                os.fsync(self._file.fileno())
                return True
        except OSError as error:
            # Some file systems report a full disk at the sync only, and only once: the line, which was not synced, must
            # not stay in the file.
            os.ftruncate(self._file.fileno(), self._known_size)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False
        os.ftruncate(self._file.fileno(), self._known_size)
        return False

    def _reserve(self) -> None:
        """Reserve disk space, so that a `visible` event can still be written when the disk is full."""
        reserve = self._reserve_path()
        try:
            if not reserve.exists() or reserve.stat().st_size < RESERVE_BYTES:
                reserve.write_bytes(bytes(RESERVE_BYTES))
                sync(reserve)
        except OSError as error:
            raise StorageError(f"{reserve} cannot be written ({error.strerror}): make room, and start again.") from None

    def _free_reserve(self) -> bool:
        """Free the reserved space; return whether there was any."""
        reserve = self._reserve_path()
        there = reserve.exists()
        reserve.unlink(missing_ok=True)
        return there

    def _reserve_path(self) -> Path:
        return self.path.with_suffix(".reserve")


@dataclass(frozen=True)
class Released:
    """What a journal says about its run.

    Args:
        run (`str`, *optional*):
            The random name of the run, which copies of its directory share; None in an older format.
        sessions (`dict[str, int]`):
            For each session of the run, by its random name, how many of its releases count. A copy that was resumed
            elsewhere has other sessions.
        header (`dict`): The settings of the run when the journal was started.
        mechanisms (`list[Mechanism]`): The releases that count, in order, one entry each.
        not_private (`str`, *optional*): The reason for which the run gives no privacy, if there is one.
    """

    run: str | None
    sessions: dict[str, int]
    header: dict[str, Any]
    mechanisms: list[Mechanism]
    not_private: str | None

    @staticmethod
    def of(events: list[dict[str, Any]]) -> "Released":
        """Summarise the events of a journal."""
        header = events[0]["header"]
        reasons = [event["not_private"] for event in events if "not_private" in event]
        not_private = reasons[0] if reasons else None
        if header["format"] in OLDER_FORMATS:
            return Released(None, {}, header, _counted(events), not_private)
        known = set(_known(events))
        session, sessions = header["session"], {header["session"]: 0}
        for number, event in enumerate(events):
            if "resume" in event:
                session = event["resume"]["session"]
                sessions[session] = 0
            elif number in known:
                sessions[session] += 1
        return Released(header["run"], sessions, header, _counted(events), not_private)


def read_released(path: str | Path) -> Released:
    """Read what a run has released so far; its journal may be in use.

    The file is only read, so this takes no lock. A run that continues may make further releases right afterwards, but
    everything that it wrote before this call depends on the returned releases only. In a journal of an older format
    every release counts, as it does not say which of them were unseen.

    Args:
        path (`str` or `Path`): The file.

    Raises:
        InputError: If another version of the library wrote the journal, in a format that this one does not know.
        StorageError: If the journal is damaged.
    """
    path = Path(path)
    return Released.of(_read(path.read_bytes().decode("utf-8", errors="replace"), path, (FORMAT, *OLDER_FORMATS)))


def _counted(events: list[dict[str, Any]]) -> list[Mechanism]:
    return [_mechanism(events[number]["release"]) for number in _known(events)]


def _known(events: list[dict[str, Any]]) -> list[int]:
    """The numbers of the events whose release counts. Only the last releases of a killed session do not."""
    last: list[int | None] = [None]  # by number of events: the last release that the run's state depends on
    before: dict[int, int | None] = {}  # by release: the one before it that the state depended on
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
            if not event["release"].get("unseen"):
                know(release)
        elif "visible" in event:
            know(release)
        elif "resume" in event:
            release = last[event["resume"]["position"]]
            know(release)
        last.append(release)
    know(last[-1])
    return sorted(known)


def _mechanism(release: dict[str, Any]) -> Mechanism:
    return Mechanism(**{name: value for name, value in release.items() if name != "unseen"})


def _read(text: str, path: Path, formats: tuple[int, ...] = (FORMAT,)) -> list[dict[str, Any]]:
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
            raise StorageError(
                f"Line {number} of {path} is damaged, and what the run has released is not known: restore the file "
                "from a backup, or give the run up and count all of its target epsilon as spent."
            )
        events.append(event)
    if lines[-1].strip():
        # A killed process leaves no partial line (see `append`): either the machine failed before the announced event
        # began, or the file was damaged later. Only a person can tell which.
        raise StorageError(
            f"The last line of {path} is cut off: if the machine failed during the run, delete that line (what it "
            "announces had not begun) and resume; otherwise restore the file from a backup."
        )
    if not events or events[0].get("header", {}).get("format") not in formats:
        raise InputError(f"{path} is not a journal of this version: resume with the version that wrote it.")
    return events


def _checksum(event: dict[str, Any], previous: int) -> int:
    content = {name: value for name, value in event.items() if name != "check"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode(), previous)
