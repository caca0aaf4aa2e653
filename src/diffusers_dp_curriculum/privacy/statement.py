"""Whether a privacy.json may be published: it is private, and states all that its run has released."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .accounting import LooseEpsilonWarning, compute_epsilon
from .counted_runs import CountedRun, all_mechanisms
from .journal import read_released
from .privacy_json import ZERO_OUT, counted_runs


ADJACENCIES = (ZERO_OUT, "add_or_remove_one_record")  # the other is what older versions called the same
JOURNAL = "private/journal.jsonl"  # in the directory of a run
TOLERANCE = 1e-6  # relative, of a stated epsilon: rounding differs between machines


def read_statement(path: Path, name: str) -> dict[str, Any]:
    """The content of a privacy.json, whatever it says.

    Args:
        path (`Path`): The file.
        name (`str`): What messages call it.

    Raises:
        InputError: If the file cannot be read, or does not hold what a privacy.json does.
    """
    try:
        statement = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(statement, dict):
            raise ValueError(f"it holds a {type(statement).__name__}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): give a privacy.json, or save the pipeline again."
        ) from error
    try:
        counted_runs(statement)
        _check_sentences(statement)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return statement


def check_statement(privacy_json: Path) -> dict[str, Any]:
    """Read a privacy.json, and refuse to publish under it unless it is private and states no less than it amounts to.

    Raises:
        InputError:
            If it cannot be read, is not private, understates epsilon, or contradicts the journal beside it.
    """
    privacy = read_statement(privacy_json, str(privacy_json))
    check_publishable(privacy)
    check_epsilon(privacy, str(privacy_json))
    check_same_run(privacy_json, privacy)
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


def check_epsilon(statement: dict[str, Any], name: str) -> None:
    """Refuse a statement whose epsilon is less than its mechanisms amount to.

    Args:
        statement (`dict`): The content of a privacy.json.
        name (`str`): What messages call it.

    Raises:
        InputError: If it understates epsilon, or nothing can be said of it (see [`recompute_epsilon`]).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LooseEpsilonWarning)
        epsilon = recompute_epsilon(statement)
    if understates(statement, epsilon):
        raise InputError(
            f"{name} states epsilon {statement.get('epsilon')}, but its mechanisms amount to {epsilon:.4g}: save the "
            "pipeline again."
        )


def recompute_epsilon(statement: dict[str, Any]) -> float:
    """Epsilon from the content of a privacy.json alone, whatever epsilon it states.

    Args:
        statement (`dict`):
            The content of the file; `mechanisms`, `delta` and `accountant` are used, and `adjacency` has to be zero-out
            or what older versions called so.

    Raises:
        InputError:
            If it is not the content of a privacy.json, is for another adjacency, or its accountant cannot bound the
            composition.
    """
    if (adjacency := statement.get("adjacency", ZERO_OUT)) not in ADJACENCIES:
        raise InputError(
            f"The statement is for the adjacency {adjacency}, which this version does not know: use the version that "
            "wrote it."
        )
    mechanisms = all_mechanisms(counted_runs(statement))
    try:
        delta, accountant = float(statement["delta"]), statement["accountant"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"This is not the content of a privacy.json ({type(error).__name__}: {error}): give one that this library "
            "wrote."
        ) from error
    return compute_epsilon(mechanisms, delta, accountant)


def understates(statement: dict[str, Any], epsilon: float) -> bool:
    """Whether a privacy.json states less than its mechanisms amount to, or no number at all.

    Args:
        statement (`dict`): The content of the file.
        epsilon (`float`): What [`recompute_epsilon`] makes of it.
    """
    stated = statement.get("epsilon")
    return not (isinstance(stated, int | float) and stated >= (1 - TOLERANCE) * epsilon)


def check_same_run(privacy_json: Path, privacy: dict[str, Any]) -> None:
    """Refuse a statement that is not of the run whose journal lies beside it, if there is one.

    Args:
        privacy_json (`Path`): Where the statement is.
        privacy (`dict`): Its content.

    Raises:
        InputError: If it is of another run, or of a copy of the run that was resumed elsewhere.
    """
    released = runs_of_journal(privacy_json.parent)
    if released is not None and not _count_all_of(released, counted_runs(privacy)):
        raise InputError(
            f"{privacy_json} counts releases that the journal beside it does not have, as it is of another run or of a "
            "copy of this one that was resumed elsewhere: put it back where it belongs, or save the pipeline again."
        )


def runs_of_journal(directory: Path) -> list[CountedRun] | None:
    """What the run in a directory has released by now, and the previous runs that it counts.

    Args:
        directory (`Path`): The directory of a run.

    Returns:
        `list[CountedRun]`: None where there is no journal, as with published files.

    Raises:
        InputError: If the journal is damaged.
    """
    path = journal_in(directory)
    return None if path is None else CountedRun.of_journal(read_released(path))


def journal_in(directory: Path) -> Path | None:
    """The journal of the run in a directory; None if nothing has begun there, or only published files are here."""
    path = directory / JOURNAL
    return path if path.is_file() and path.stat().st_size > 0 else None


def leaves_out(statement: dict[str, Any], released: Sequence[CountedRun]) -> bool:
    """Whether a run has released anything that its statement does not count.

    Args:
        statement (`dict`): The content of its privacy.json.
        released (`Sequence[CountedRun]`): What its journal counts.
    """
    return not _count_all_of(counted_runs(statement), released)


def check_journal(directory: Path, privacy: dict[str, Any], released: Sequence[CountedRun] | None) -> None:
    """Refuse to publish a statement that leaves out anything that the run has released.

    Args:
        directory (`Path`): The directory of the run, or one with its published files alone.
        privacy (`dict`): The content of the run's privacy.json.
        released (`Sequence[CountedRun]`, *optional*): What the run counts; read from its journal by default.

    Raises:
        InputError: If the journal in `directory` has releases that the statement does not count.
    """
    if released is None:
        released = runs_of_journal(directory)  # the published files alone were checked when they left the run
    if released is not None and leaves_out(privacy, released):
        raise InputError(
            f"{directory / JOURNAL} has releases that privacy.json does not count, as the run was continued after it "
            "was saved: save the pipeline again before it is pushed."
        )


def check_replaces(privacy: dict[str, Any], published: dict[str, Any], where: str) -> None:
    """Refuse to publish a statement in the place of one that knows of releases of the same run that it does not count.

    Args:
        privacy (`dict`): The statement to publish.
        published (`dict`): The statement that is there.
        where (`str`): The place, in words.

    Raises:
        InputError: If the statements are of copies of one run, or the one that is there is newer.
    """
    own, *previous = counted_runs(privacy)
    for there in counted_runs(published):
        for run in (own, *previous):
            if run.id is None or run.id != there.id or run.counts_all_of(there):
                continue
            if not there.counts_all_of(run):
                raise InputError(
                    f"{where} holds a statement about a copy of the same run that was resumed separately, and neither "
                    "counts all of its releases: add both up by `dp-curriculum epsilon`, and push to another "
                    "repository."
                )
            if run is own:
                raise InputError(
                    f"{where} holds a newer statement of the same run, with releases that this one does not count: "
                    "push the newer state of the run, or push to another repository."
                )


def _count_all_of(runs: Sequence[CountedRun], others: Sequence[CountedRun]) -> bool:
    """Whether a statement counts all that a journal does, or the other way round; both have their own run first."""
    return len(runs) >= len(others) and all(
        # An older version wrote no names: what was released has to do.
        run.counts_all_of(other) or (None in (run.id, other.id) and run.has_releases_of(other))
        for run, other in zip(runs, others, strict=False)
    )


def _check_sentences(statement: dict[str, Any]) -> None:
    for name in ("remarks", "public_assumptions"):
        sentences = statement.get(name, [])
        if not (isinstance(sentences, list) and all(isinstance(sentence, str) for sentence in sentences)):
            raise InputError(
                f"This is not the content of a privacy.json (its {name} are no list of sentences): give one that this "
                "library wrote."
            )
