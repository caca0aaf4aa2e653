"""What is on disk when, who may write it, and what is made of it after a crash."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from diffusers_dp_curriculum import journal as journal_module
from diffusers_dp_curriculum.accounting import Mechanism
from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.journal import Journal, read_counted


HEADER = {"delta": 1e-5, "accountant": "prv", "target_epsilon": 10.0}


def release(journal, number):
    journal.append("release", asdict(Mechanism(f"release {number}", 1.0, 0.1, 1, 1.0)))


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
    assert (again.header, again.position, counted(again)) == ({"format": 1, **HEADER}, 3, [1, 2])
    release(again, 3)
    again.close()
    assert counted(Journal(path)) == [1, 2, 3]


def test_no_journal_is_ever_overwritten(path):
    path.write_text("{}\n")
    with pytest.raises(InputError, match="journal of another run"):
        Journal(path, HEADER)
    assert path.read_text() == "{}\n"


def test_a_missing_journal_is_not_made_up(path):
    with pytest.raises(InputError, match="no journal .* to go on with"):
        Journal(path)
    assert not path.exists()


def test_two_processes_cannot_write_one_journal(path):
    journal = Journal(path, HEADER)
    open_it = f"from diffusers_dp_curriculum.journal import Journal; Journal({str(path)!r})"
    second = subprocess.run([sys.executable, "-c", open_it], capture_output=True, text=True)
    assert "Another process is writing" in second.stderr
    with pytest.raises(InputError, match="Another process is writing"):
        Journal(path)
    release(journal, 1)
    assert read_counted(path) == journal.counted() != []  # reading it is not writing it
    journal.close()
    assert subprocess.run([sys.executable, "-c", open_it], capture_output=True).returncode == 0


# What counts after a resume. A number is a release, a letter a checkpoint, >a a resume from it; v: something was seen.
@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ("1 2 3", [1, 2, 3]),
        ("1 2 a 3 >a 4", [1, 2, 4]),  # 3 is known to nobody and part of nothing
        ("1 2 a 3 v >a 4", [1, 2, 3, 4]),  # 3 was in a picture
        ("1 2 a 3 v 4 >a 5", [1, 2, 3, 5]),
        ("a 1 2 3 >a 4 5 >a 6", [6]),
        ("1 2 a 3 b >b 4 5 >a 6", [1, 2, 3, 6]),  # b was used, so 3 counts although it was given up
        ("1 a 2 >a v 3", [1, 3]),  # the picture came after 2 was given up
        ("1 a 2 3 b >a 4 >b 5", [1, 2, 3, 5]),  # given up, and taken up again
        ("1 a 2 b >a >b", [1, 2]),
        ("1 a 2 3 >a b 4 >b 5", [1, 5]),  # a checkpoint says which releases it holds, not how many there were
        ("1 a 2 v >a 3 b 4 >b 5 v >a", [1, 2, 3, 5]),
    ],
)
def test_releases_count_unless_they_were_abandoned_unseen(path, events, expected):
    journal = Journal(path, HEADER)
    checkpoints = {}
    for event in events.split():
        if event == "v":
            journal.append("visible", "picture")
        elif event.startswith(">"):
            journal.append("resume", {"position": checkpoints[event[1:]]})
        elif event.isalpha():
            checkpoints[event] = journal.position
        else:
            release(journal, event)
    assert counted(journal) == expected
    journal.close()
    assert counted(Journal(path)) == expected


def test_a_long_journal_is_counted_in_no_time(path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    journal = Journal(path, HEADER)
    for number in range(20_000):
        release(journal, number)
    start = time.perf_counter()
    assert len(journal.counted()) == 20_000
    assert time.perf_counter() - start < 2


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
    damaged = "".join(damage(lines_of(path))).encode("latin-1")
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=message):
        Journal(path)
    assert path.read_bytes() == damaged
    with pytest.raises(InputError, match=message):  # nor does the refusal keep it locked
        Journal(path)
    with pytest.raises(InputError, match=message):
        read_counted(path)


def test_a_line_cut_off_may_be_deleted_as_the_refusal_says(path):
    lines = lines_of(path)
    path.write_text("".join(lines[:-1]))
    assert counted(Journal(path)) == [1, 2, 3]


STEPS = """
import sys
from test_dp_sgd import make_dp_sgd
from diffusers_dp_curriculum.ledger import PrivacyLedger

mechanism = make_dp_sgd(batch_size=3, steps=100_000, ledger=PrivacyLedger(1e-5, journal=sys.argv[1]))
for number in range(1, 100_000):
    mechanism.step()
    print(number, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes as Unix does")
def test_a_crash_counts_at_most_one_step_too_many_and_never_one_too_few(tmp_path):
    """Real steps in a real process, killed at moments of chance."""
    for attempt in range(2):
        journal = tmp_path / f"{attempt}.jsonl"
        process = subprocess.Popen(
            [sys.executable, "-c", STEPS, journal], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
        )
        assert process.stdout.readline() == "1\n"
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        seen = 1 + len(process.stdout.read().splitlines())
        process.wait()
        assert len(Journal(journal).counted()) - seen in (0, 1)


def test_a_kill_while_a_line_is_written_leaves_all_of_it_or_none(path, monkeypatch):
    """One call writes it, within a page, between two of which a killed process may end."""
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
    path.write_text(path.read_text() + "   ")  # killed between the two pages: nothing of the line is there
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
    assert synced == [path.parent]
