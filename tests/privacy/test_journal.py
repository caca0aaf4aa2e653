"""The journal: when events are on disk, who may write it, and what it counts after a crash."""

import errno
import json
import os
import random
import signal
import sys
import time

import pytest

from diffusers_dp_curriculum.errors import InputError, StorageError
from diffusers_dp_curriculum.privacy import journal as journal_module
from diffusers_dp_curriculum.privacy.accounting import Mechanism
from diffusers_dp_curriculum.privacy.journal import Journal, read_released
from diffusers_dp_curriculum.privacy.ledger import PrivacyLedger
from helpers.dp_sgd_steps import make_dp_sgd
from helpers.processes import exit_code, fork


HEADER = {"delta": 1e-5, "accountant": "prv", "target_epsilon": 10.0}


def release(journal, number, unseen=True):
    journal.release(Mechanism(f"release {number}", 1.0, 0.1, 1, 1.0), unseen)


def counted(journal):
    return [int(mechanism.name.split()[1]) for mechanism in journal.counted()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def test_an_event_is_on_disk_when_append_returns(path, monkeypatch):
    journal = Journal(path, HEADER)
    on_disk = []
    monkeypatch.setattr(os, "fsync", lambda _: on_disk.append(path.read_text()))
    release(journal, 1)
    assert len(on_disk) == 1
    assert json.loads(on_disk[0].splitlines()[-1])["release"]["name"] == "release 1"


def test_what_was_written_is_read_again(path):
    journal = Journal(path, HEADER)
    for number in (1, 2):
        release(journal, number)
    events = journal.events
    journal.close()
    again = Journal(path)
    assert again.events == events
    assert (again.position, counted(again)) == (3, [1, 2])
    assert again.header.items() > HEADER.items()
    release(again, 3)
    again.close()
    assert counted(Journal(path)) == [1, 2, 3]


def test_no_journal_is_ever_overwritten(path):
    path.write_text("{}\n")
    with pytest.raises(InputError, match="journal of another run"):
        Journal(path, HEADER)
    assert path.read_text() == "{}\n"


def test_a_missing_journal_is_not_made_up(path):
    with pytest.raises(InputError, match="no journal .* to resume"):
        Journal(path)
    assert not path.exists()


def test_two_processes_cannot_write_one_journal(path):
    journal = Journal(path, HEADER)

    def refused_to_another():
        try:
            Journal(path)
        except InputError as error:
            return 2 if "Another process is writing" in str(error) else 3
        return 0

    assert exit_code(fork(refused_to_another)) == 2
    with pytest.raises(InputError, match="Another process is writing"):
        Journal(path)
    release(journal, 1)
    assert read_released(path).mechanisms == journal.counted() != []  # reading needs no lock
    journal.close()
    assert exit_code(fork(refused_to_another)) == 0


# Which releases count after a resume. A number is an unseen release, 1! a release that counts at once, a letter a
# checkpoint, >a a resume from checkpoint a, and v means that something was seen.
@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ("1 2 3", [1, 2, 3]),
        ("1 2 a 3 >a 4", [1, 2, 4]),  # release 3 was lost with its process
        ("1 2 a 3! >a 4", [1, 2, 3, 4]),  # release 3 counts at once
        ("1 2 a 3 4! 5 >a 6", [1, 2, 3, 4, 6]),  # release 4 counts at once, and 3, on which it depends
        ("1 a 2 b >a 3", [1, 2, 3]),  # checkpoint b could be seen, and may have been deleted
        ("1 a 2 v >a 3 v >a 4 v", [1, 2, 3, 4]),  # interrupted and seen several times
        ("1 2 a 3 v >a 4", [1, 2, 3, 4]),  # release 3 was visible in a picture
        ("1 2 a 3 v 4 >a 5", [1, 2, 3, 5]),
        ("a 1 2 3 >a 4 5 >a 6", [6]),
        ("1 2 a 3 b >b 4 5 >a 6", [1, 2, 3, 6]),
        ("1 a 2 >a v 3", [1, 3]),  # release 2 was lost before the picture
        ("1 a 2 3 b >a 4 >b 5", [1, 2, 3, 5]),  # resumed from a, and then from b again
        ("1 a 2 b >a >b", [1, 2]),
        ("1 a 2 3 >a b 4 >b 5", [1, 5]),  # a checkpoint says which releases it holds, not how many there were
        ("1 a 2 v >a 3 b 4 >b 5 v >a", [1, 2, 3, 5]),
    ],
)
def test_releases_count_unless_they_were_lost_unseen(path, events, expected):
    journal = Journal(path, HEADER)
    checkpoints = {}
    for event in events.split():
        if event == "v":
            journal.append("visible", "picture")
        elif event.startswith(">"):
            journal.resume(checkpoints[event[1:]])
        elif event.isalpha():
            journal.append("visible", f"checkpoint {event}")
            checkpoints[event] = journal.position
        elif event.endswith("!"):
            release(journal, event[:-1], unseen=False)
        else:
            release(journal, event)
    assert counted(journal) == expected
    journal.close()
    assert counted(Journal(path)) == expected


def test_the_work_of_counting_grows_as_the_journal_does(path, monkeypatch):
    """Work that grew as the square would take minutes for the journal of a long run."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    journal, lines = Journal(path, HEADER), []

    def count_lines(frame, event, arg):
        lines[-1] += event == "line"
        return count_lines

    for _ in range(2):
        for number in range(500):
            release(journal, number)
        lines.append(0)
        sys.settrace(count_lines)
        try:
            counted = journal.counted()
        finally:
            sys.settrace(None)
        assert len(counted) == 500 * len(lines)
    assert 500 < lines[1] < 2.2 * lines[0]


def lines_of(path, count=5):
    journal = Journal(path, HEADER)
    for number in range(1, count):
        release(journal, number)
    journal.close()
    return path.read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [*lines[:-1], lines[-1][:-9]], "last line .* is cut off.* delete that line"),
        (lambda lines: [*lines[:2], lines[2][:-9] + "\n", *lines[3:]], "Line 3 .* is damaged.* restore the file"),
        (lambda lines: [*lines[:2], *lines[3:]], "Line 3 .* is damaged"),
        (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], "Line 3 .* is damaged"),
        (
            lambda lines: [line.replace('"noise_multiplier": 1.0', '"noise_multiplier": 9.0') for line in lines],
            "Line 2",
        ),
        (lambda lines: lines[1:], "Line 1 .* is damaged"),
        (lambda lines: [lines[0], lines[1].replace("name", "n\xe1me"), *lines[2:]], "Line 2 .* is damaged"),
        (lambda lines: ["[]\n", *lines[1:]], "Line 1 .* is damaged"),
        (lambda lines: [], "not a journal of this version"),
    ],
    ids=[
        "cut off",
        "half a line",
        "a line missing",
        "out of order",
        "edited",
        "no header",
        "a flipped bit",
        "not an event",
        "empty",
    ],
)
def test_a_damaged_journal_is_refused_and_left_as_it_is(path, damage, message):
    error = InputError if "version" in message else StorageError
    damaged = "".join(damage(lines_of(path))).encode("latin-1")
    path.write_bytes(damaged)
    with pytest.raises(error, match=message):
        Journal(path)
    assert path.read_bytes() == damaged
    with pytest.raises(error, match=message):  # the refusal leaves no lock
        Journal(path)
    with pytest.raises(error, match=message):
        read_released(path)


def test_a_line_cut_off_may_be_deleted_as_the_refusal_says(path):
    lines = lines_of(path)
    path.write_text("".join(lines[:-1]))
    assert counted(Journal(path)) == [1, 2, 3]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes as Unix does")
def test_a_crash_counts_at_most_one_step_too_many_and_never_one_too_few(tmp_path):
    """Real steps in a real process, which is killed at random moments."""
    for attempt in range(3):
        journal = tmp_path / f"{attempt}.jsonl"
        told, tell = os.pipe()

        def take_steps(journal=journal, tell=tell):
            mechanism = make_dp_sgd(batch_size=3, steps=100_000, ledger=PrivacyLedger(1e-5, journal=journal))
            while True:
                mechanism.step()
                os.write(tell, b".")

        child = fork(take_steps)
        os.close(tell)
        assert os.read(told, 1) == b"."
        time.sleep(random.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        assert exit_code(child) == -signal.SIGKILL
        with open(told, "rb") as rest:
            seen = 1 + len(rest.read())
        assert len(Journal(journal).counted()) - seen in (0, 1)


def test_a_kill_while_a_line_is_written_leaves_all_of_it_or_none(path, monkeypatch):
    """One call writes the line, and it is within one page: a killed process may stop between two pages."""
    written = []
    write = os.write
    monkeypatch.setattr(
        os, "write", lambda file, line: written.append((path.stat().st_size, line)) or write(file, line)
    )
    journal = Journal(path, HEADER)
    for number in range(60):
        release(journal, number)
    assert len(written) == 61
    assert path.stat().st_size > 2 * 4096
    for start, line in written:
        text = line.lstrip()
        first, last = start + len(line) - len(text), start + len(line) - 1
        assert first // 4096 == last // 4096
    journal.close()
    assert counted(Journal(path)) == list(range(60))
    path.write_text(path.read_text() + "   ")  # killed between the two pages, before any of the line was written
    release(Journal(path), 60)


def test_a_process_killed_before_its_header_leaves_a_directory_to_start_in(path):
    path.touch()
    with pytest.raises(InputError, match="not a journal"):
        Journal(path)
    assert Journal(path, HEADER).counted() == []


def test_the_directory_is_synced_too(path, monkeypatch):
    synced = []
    monkeypatch.setattr(journal_module, "sync", synced.append)
    Journal(path, HEADER)
    assert synced[-1] == path.parent


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("function", ["write", "fsync", "ftruncate"])
def test_ctrl_c_while_an_event_is_written_does_not_damage_the_journal(path, monkeypatch, function, after):
    """Wherever Ctrl-C interrupts, the file has the whole event or nothing, and the next event follows."""
    journal = Journal(path, HEADER)
    original = getattr(os, function)

    def interrupted(*arguments):
        if after:
            original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(os, function, interrupted)
        if function == "ftruncate":
            broken.setattr(os, "write", lambda *_: 0)  # no room
        with pytest.raises(KeyboardInterrupt):
            release(journal, 1)
    release(journal, 2)
    journal.close()
    written = function == "fsync" or (function == "write" and after)
    assert counted(Journal(path)) == ([1, 2] if written else [2])


def test_on_a_full_disk_no_release_begins_and_what_is_in_memory_still_counts(small_disk):
    journal = Journal(small_disk / "journal.jsonl", HEADER)
    release(journal, 1)
    checkpoint = journal.position
    release(journal, 2)
    (small_disk / "other").write_bytes(bytes(300_000))
    with pytest.raises(OSError, match="No space"):
        (small_disk / "more").write_bytes(bytes(300_000))

    def until_it_is_full():
        while True:  # until the last page of the file is full
            release(journal, 3)

    with pytest.raises(StorageError, match="disk of .* is full: make room"):
        until_it_is_full()
    journal.append("visible", "memory")
    journal.close()
    (small_disk / "other").unlink()
    (small_disk / "more").unlink()
    again = Journal(small_disk / "journal.jsonl")
    again.resume(checkpoint)
    assert counted(again)[:2] == [1, 2]
    assert (small_disk / "journal.reserve").stat().st_size > 4096  # space is reserved again


def test_a_run_keeps_its_name_and_every_session_has_its_own(path, tmp_path):
    journal = Journal(path, HEADER)
    release(journal, 1)
    journal.close()
    (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())
    for number, file in enumerate((path, tmp_path / "copy.jsonl")):
        resumed = Journal(file)
        resumed.resume(2)
        for _ in range(number + 1):
            release(resumed, 2)
        resumed.close()
    one, copy = read_released(path), read_released(tmp_path / "copy.jsonl")
    assert one.run == copy.run
    assert list(one.sessions.values()) == [1, 1]
    assert list(copy.sessions.values()) == [1, 2]
    assert len(set(one.sessions) & set(copy.sessions)) == 1
    journal = Journal(tmp_path / "other.jsonl", HEADER)
    assert journal.header["run"] != one.run


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_at_the_sync_has_no_line_that_may_be_lost(path, monkeypatch, code):
    """Network file systems report a full disk at the sync, and a second sync reports nothing."""
    journal = Journal(path, HEADER)
    release(journal, 1)
    sync = os.fsync
    failing = [code] * 2

    def fails(file):
        if failing:
            raise OSError(failing.pop(), "the disk")
        sync(file)

    monkeypatch.setattr(os, "fsync", fails)
    for _ in range(2):
        with pytest.raises((StorageError, OSError)):
            release(journal, 2)
    failing.append(code)
    if code == errno.EIO:
        failing.clear()
    journal.append("visible", "memory")  # on a full disk the reserve makes room for it
    journal.close()
    again = Journal(path)
    assert counted(again) == [1]
    assert "visible" in again.events[-1]


def test_releases_that_were_lost_are_not_among_those_of_a_session(path, tmp_path):
    """Otherwise a copy that lost these releases would seem to count those of the original, which were seen."""
    journal = Journal(path, HEADER)
    for number in (1, 2):
        release(journal, number)
    journal.append("visible", "checkpoint")
    position = journal.position
    for number in (3, 4):
        release(journal, number)
    (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())
    journal.append("visible", "memory")
    copy = Journal(tmp_path / "copy.jsonl")
    copy.resume(position)
    release(copy, 5)
    original, other = read_released(path), read_released(tmp_path / "copy.jsonl")
    assert list(original.sessions.values()) == [4]
    assert list(other.sessions.values()) == [2, 1]


def test_a_checkpoint_of_a_copy_is_not_resumed(path, tmp_path):
    journal = Journal(path, HEADER)
    (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())
    copy = Journal(tmp_path / "copy.jsonl")
    for one in (journal, copy):
        one.resume(1)
        release(one, 1)
        one.append("visible", "checkpoint")
    position, check = journal.position, journal.check
    with pytest.raises(InputError, match="checkpoint is of a copy of this run that was resumed elsewhere"):
        copy.resume(position, check)
    journal.resume(position, check)


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock here")])
def test_a_disk_without_locks_is_named(tmp_path, monkeypatch, error):
    monkeypatch.setattr(journal_module.FileLock, "acquire", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(StorageError, match=r"journal.jsonl cannot be locked \(.*no.*\): choose an output directory on"):
        Journal(tmp_path / "journal.jsonl", HEADER)
