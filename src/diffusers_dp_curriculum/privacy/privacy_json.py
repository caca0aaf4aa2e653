"""The content of a privacy.json: what is written into it, and which runs it counts.

It counts one run or several, its own run first and then the previous runs that it covers: `runs` has the name of each
with its sessions, and each entry of `mechanisms` says by its `run` which of them it belongs to, from 0.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from ..errors import InputError
from .accounting import LooseEpsilonWarning, Mechanism, compute_epsilon
from .counted_runs import CountedRun, all_mechanisms, branches


ZERO_OUT = "zero_out_one_record"
BRANCHES = (
    "Copies of one run that were resumed separately are each counted in full, so what they share is counted twice."
)


def make_statement(
    runs: Sequence[CountedRun],
    delta: float,
    accountant: str,
    *,
    scope: str,
    dataset_size: int | None,
    not_private: str | None,
    remarks: Iterable[str] = (),
    public_assumptions: Iterable[str],
    versions: dict[str, str],
) -> dict[str, Any]:
    """The content of a privacy.json: enough for a stranger to recompute epsilon without this library.

    Args:
        runs (`Sequence[CountedRun]`): What is counted.
        delta (`float`): Delta of all of it together.
        accountant (`str`): `"prv"` or `"rdp"`.
        scope (`str`): What epsilon is for, in a sentence.
        dataset_size (`int`, *optional*): N, the number of records, which is public; None where it is not known.
        not_private (`str`, *optional*): The reason for which there is no privacy, if there is one.
        remarks (`Iterable[str]`): What has to be said besides.
        public_assumptions (`Iterable[str]`): What is taken as public.
        versions (`dict[str, str]`): Of the packages that computed it.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        epsilon = compute_epsilon(all_mechanisms(runs), delta, accountant)
    loose = [str(warning.message) for warning in caught if warning.category is LooseEpsilonWarning]
    broken = [f"NOT PRIVATE: {not_private}."] if not_private is not None else []
    return {
        "epsilon": epsilon,
        "delta": delta,
        "accountant": accountant,
        "adjacency": ZERO_OUT,
        "scope": scope,
        "dataset_size": dataset_size,
        "private": not_private is None,
        "remarks": list(dict.fromkeys([*broken, *loose, *([BRANCHES] if branches(runs) else []), *remarks])),
        "runs": [{"id": run.id, "sessions": run.sessions} for run in runs],
        "mechanisms": [
            {"run": number, **asdict(mechanism)} for number, run in enumerate(runs) for mechanism in run.mechanisms
        ],
        "public_assumptions": list(public_assumptions),
        "versions": versions,
    }


def scope_in_words(num_previous: int) -> str:
    """What the figure of a run is for, in a sentence.

    Args:
        num_previous (`int`): The number of previous runs that it counts.
    """
    counted = "this run alone"
    if num_previous > 0:
        counted = f"this run and the {num_previous} previous run{'s' * (num_previous > 1)} that it counts"
    return f"The figure is for {counted}: further runs on the same records add up."


def counted_runs(statement: dict[str, Any]) -> list[CountedRun]:
    """The runs that a statement counts, its own run first.

    A statement of an older version, which names no runs, counts one without a name.

    Args:
        statement (`dict`): The content of a privacy.json.

    Raises:
        InputError: If it is not the content of a privacy.json.
    """
    try:
        runs = [_named(run) for run in statement.get("runs", [{"id": None, "sessions": {}}])]
        if not runs:
            raise ValueError("it counts no run")
        for entry in statement["mechanisms"]:
            number = entry.get("run", 0)
            if not (_is_whole(number) and 0 <= number < len(runs)):
                raise ValueError(f"there is no run {number}")
            runs[number].mechanisms.append(_mechanism(entry))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"This is not the content of a privacy.json ({type(error).__name__}: {error}): give one that this library "
            "wrote."
        ) from error
    return runs


def _named(run: dict[str, Any]) -> CountedRun:
    """A run of a statement, before its mechanisms are known."""
    name, sessions = run["id"], run["sessions"]
    if not (name is None or isinstance(name, str)):
        raise ValueError(f"a run is called {name}")
    if not all(_is_whole(releases) for releases in sessions.values()):
        raise ValueError(f"a session has {sessions} releases")
    return CountedRun(name, dict(sessions), [])


def _mechanism(entry: dict[str, Any]) -> Mechanism:
    if not (isinstance(entry["name"], str) and entry["name"].isprintable() and _is_whole(entry["steps"])):
        raise ValueError(f"{entry['steps']!r} steps of {entry['name']!r}")
    return Mechanism(**{field.name: entry[field.name] for field in fields(Mechanism)})


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
