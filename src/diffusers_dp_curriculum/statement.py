"""Whether anything may be published under a privacy.json: it is private, and states all that its run released."""

import json
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

from .accounting import LooseEpsilonWarning, Mechanism, compute_epsilon
from .errors import InputError
from .journal import read_released


TOLERANCE = 1e-6  # relative, of a stated epsilon: rounding differs between machines


def check_statement(privacy_json: Path) -> dict[str, Any]:
    """Read a privacy.json, and refuse to publish under it unless it is private and states no less than it amounts to.

    Raises:
        InputError: If it cannot be read, is not private, or understates epsilon.
    """
    try:
        privacy = json.loads(privacy_json.read_text(encoding="utf-8"))
        if not isinstance(privacy, dict):
            raise ValueError(f"it holds a {type(privacy).__name__}")
    except (OSError, ValueError) as error:
        raise InputError(f"{privacy_json} cannot be read ({error}): save the pipeline again.") from error
    check_publishable(privacy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LooseEpsilonWarning)
        epsilon = recompute_epsilon(privacy)
    if understates(privacy, epsilon):
        raise InputError(
            f"{privacy_json} states epsilon {privacy.get('epsilon')}, but its mechanisms amount to {epsilon:.4g}: save "
            "the pipeline again."
        )
    return privacy


def check_publishable(statement: dict[str, Any]) -> None:
    """Refuse to publish anything of a run that gives no privacy.

    Args:
        statement (`dict`): The content of the run's privacy.json.

    Raises:
        InputError: If it does not say `"private": true`.
    """
    if statement.get("private") is not True:
        remarks = " ".join(statement.get("remarks", []))
        raise InputError(
            f"This run is not private and may not be published: train without what says so. {remarks}".strip()
        )


def recompute_epsilon(statement: dict[str, Any]) -> float:
    """Epsilon from the content of a privacy.json alone, whatever epsilon it states.

    Args:
        statement (`dict`): The content of the file; `mechanisms`, `delta` and `accountant` are used.

    Raises:
        InputError: If it is not the content of a privacy.json, or its accountant cannot bound the composition.
    """
    names = {field.name for field in fields(Mechanism)}
    try:
        entries = [{name: entry[name] for name in names} for entry in statement["mechanisms"]]
        mechanisms = [Mechanism(**entry) for entry in entries]
        delta, accountant = float(statement["delta"]), statement["accountant"]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"This is not the content of a privacy.json ({type(error).__name__}: {error}).") from error
    return compute_epsilon(mechanisms, delta, accountant)


def understates(statement: dict[str, Any], epsilon: float) -> bool:
    """Whether a privacy.json states less than its mechanisms amount to, or no number at all.

    Args:
        statement (`dict`): The content of the file.
        epsilon (`float`): What [`recompute_epsilon`] makes of it.
    """
    stated = statement.get("epsilon")
    return not (isinstance(stated, int | float) and stated >= (1 - TOLERANCE) * epsilon)


def check_journal(directory: Path, privacy: dict[str, Any], counted: list[Mechanism] | None) -> None:
    """Refuse to publish a statement that leaves out anything that the run has released.

    Args:
        directory (`Path`): That of the run.
        privacy (`dict`): The content of its privacy.json.
        counted (`list[Mechanism]`, *optional*): What the run has released; read from its journal by default.

    Raises:
        InputError: If it does.
    """
    path = directory / "private" / "journal.jsonl"
    if counted is None:
        if not path.is_file():
            return  # only the published files are here, and they were checked when they left the run
        counted = read_released(path).mechanisms
    stated = _steps(Mechanism(**entry) for entry in privacy["mechanisms"])
    if _steps(counted) - stated:
        raise InputError(
            f"{path} has releases that privacy.json does not count, so the run went on after it was saved: save the "
            "pipeline again before it is pushed."
        )


def _steps(mechanisms: Iterable[Mechanism]) -> Counter[Any]:
    steps: Counter[Any] = Counter()
    for mechanism in mechanisms:
        steps[astuple(replace(mechanism, steps=1))] += mechanism.steps
    return steps
