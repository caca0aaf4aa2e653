"""Runs as privacy statements count them: which run it is, how far it had come, and what it had released.

A run has a random name, and so has each of its sessions; a session begins with the start of the run and with every
resume. Releases are only ever added to the newest session. So if one statement has at least as many releases of every
session as another statement of the same run, it counts everything that the other counts. If neither of the two does,
the directory of the run was copied and resumed in both places: they are branches of one run, and each has releases that
the other knows nothing of.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

from .accounting import Mechanism, merge_neighbours
from .journal import Released


@dataclass(frozen=True)
class CountedRun:
    """One run, as a statement counts it.

    Args:
        id (`str`, *optional*): The run's random name; None where an older version wrote none.
        sessions (`dict[str, int]`): The number of releases of each session that has any, by its random name.
        mechanisms (`list[Mechanism]`): What the run released, in order, with equal neighbours merged.
    """

    id: str | None
    sessions: dict[str, int]
    mechanisms: list[Mechanism]

    @staticmethod
    def of_journal(released: Released) -> "list[CountedRun]":
        """The runs that a journal counts: its own run, and then the previous runs that it was started with."""
        sessions = {name: releases for name, releases in released.sessions.items() if releases > 0}
        own = CountedRun(released.run, sessions, merge_neighbours(released.mechanisms))
        return [own, *CountedRun.of_header(released.header)]

    @staticmethod
    def of_header(header: dict[str, Any]) -> "list[CountedRun]":
        """The previous runs that a journal was started with."""
        return [
            CountedRun(run["id"], run["sessions"], [Mechanism(**mechanism) for mechanism in run["mechanisms"]])
            for run in header.get("prior_runs", [])
        ]

    def to_dict(self) -> dict[str, Any]:
        """The run as plain values, for the header of a journal."""
        return asdict(self)

    def counts_all_of(self, other: "CountedRun") -> bool:
        """Whether `other` is the same run, and everything that it counts is counted here as well."""
        return (
            self.id is not None
            and self.id == other.id
            and all(self.sessions.get(name, 0) >= releases for name, releases in other.sessions.items())
            and self.has_releases_of(other)  # false if somebody edited one of the two
        )

    def covers(self, other: "CountedRun") -> bool:
        """Whether everything that `other` counts is counted here as well, as far as the two tell which run they are.

        An older version wrote no names of runs: then what was released is compared.
        """
        return self.counts_all_of(other) or (None in (self.id, other.id) and self.has_releases_of(other))

    def has_releases_of(self, other: "CountedRun") -> bool:
        """Whether at least as many steps of every mechanism are counted here as in `other`, which may be any run."""
        return not _steps(other.mechanisms) - _steps(self.mechanisms)


def all_mechanisms(runs: Iterable[CountedRun]) -> list[Mechanism]:
    """All mechanisms of all runs."""
    return [mechanism for run in runs for mechanism in run.mechanisms]


def count_once(found: Sequence[tuple[str, CountedRun]]) -> tuple[list[tuple[str, CountedRun]], list[str]]:
    """Leave out each run whose releases another statement of the same run counts already.

    Args:
        found (`Sequence[tuple[str, CountedRun]]`): Runs, each after its name in messages.

    Returns:
        `tuple[list[tuple[str, CountedRun]], list[str]]`: The runs that remain, and a sentence about each that was left
        out or that may be counted twice.
    """
    counted: list[tuple[str, CountedRun]] = []
    for name, run in found:
        if not any(other.counts_all_of(run) for _, other in counted):
            counted = [(kept, other) for kept, other in counted if not run.counts_all_of(other)] + [(name, run)]
    return counted, [sentence for name, run in found for sentence in _remarks(name, run, counted)]


def branches(runs: Sequence[CountedRun]) -> bool:
    """Whether some of the runs are branches of the same run, each of which is counted in full."""
    ids = [run.id for run in runs if run.id is not None]
    return len(set(ids)) < len(ids)


def _remarks(name: str, run: CountedRun, counted: list[tuple[str, CountedRun]]) -> list[str]:
    if run.id is None:
        return [f"{name} does not say of which run it is, as an older version wrote it: it counts as a run of its own."]
    number = next((number for number, (_, other) in enumerate(counted) if other is run), None)
    if number is None:
        another = next(kept for kept, other in counted if other.counts_all_of(run))
        return [f"{name} is not counted again: {another} is the same run, and all of it is counted there."]
    return [
        f"{kept} and {name} are of one run, and neither counts all that the other does, as where copies of its "
        "directory were resumed separately: both are counted in full, so what they share is counted twice."
        for kept, other in counted[:number]
        if other.id == run.id
    ]


def _steps(mechanisms: Iterable[Mechanism]) -> Counter[Any]:
    steps: Counter[Any] = Counter()
    for mechanism in mechanisms:
        steps[astuple(replace(mechanism, steps=1))] += mechanism.steps
    return steps
