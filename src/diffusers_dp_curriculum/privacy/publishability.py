"""Whether a run may be published: its privacy.json is private, and states everything that the run has released."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..run_paths import RunPaths
from .accounting import LooseEpsilonWarning
from .counted_runs import CountedRun
from .journal import read_released
from .statement import PrivacyStatement, recompute_epsilon


TOLERANCE = 1e-6  # relative tolerance for a stated epsilon: rounding differs between machines


def check_statement(privacy_json: Path) -> PrivacyStatement:
    """Read a privacy.json, and refuse to publish under it unless it is private and does not understate epsilon.

    Raises:
        InputError:
            If the file cannot be read, is not private, understates epsilon, or contradicts the journal beside it.
    """
    privacy = PrivacyStatement.read(privacy_json)
    check_publishable(privacy)
    check_epsilon(privacy, str(privacy_json))
    check_same_run(privacy_json, privacy)
    return privacy


def check_publishable(statement: PrivacyStatement) -> None:
    """Refuse to publish anything of a run that gives no privacy.

    Args:
        statement (`PrivacyStatement`): The content of its privacy.json.

    Raises:
        InputError: If the statement does not say `"private": true`.
    """
    if not statement.private:
        remarks = " ".join(statement.remarks)
        raise InputError(
            "This run is not private and may not be published: train again without the cause, which its remarks name. "
            f"{remarks}".strip()
        )


def check_epsilon(statement: PrivacyStatement, name: str) -> None:
    """Refuse a statement whose epsilon is less than its mechanisms amount to.

    Args:
        statement (`PrivacyStatement`): The content of a privacy.json.
        name (`str`): The name of the statement in messages.

    Raises:
        InputError: If the statement understates epsilon, or epsilon cannot be recomputed (see [`recompute_epsilon`]).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LooseEpsilonWarning)
        epsilon = recompute_epsilon(statement)
    if understates(statement, epsilon):
        raise InputError(
            f"{name} states epsilon {statement.epsilon}, but its mechanisms amount to {epsilon:.4g}: save the "
            "pipeline again."
        )


def understates(statement: PrivacyStatement, epsilon: float) -> bool:
    """Whether a privacy.json states less than its mechanisms amount to, or no number at all.

    Args:
        statement (`PrivacyStatement`): The content of the privacy.json.
        epsilon (`float`): The epsilon that [`recompute_epsilon`] gives for it.
    """
    return not statement.epsilon >= (1 - TOLERANCE) * epsilon  # also true for nan, which states nothing


def check_same_run(privacy_json: Path, privacy: PrivacyStatement) -> None:
    """Refuse a statement that is not of the run whose journal lies beside it, if there is one.

    Args:
        privacy_json (`Path`): The file of the statement.
        privacy (`PrivacyStatement`): Its content.

    Raises:
        InputError: If the statement is of another run, or of a copy of the run that was resumed elsewhere.
    """
    released = runs_of_journal(privacy_json.parent)
    if released is not None and not _count_all_of(released, privacy.runs):
        raise InputError(
            f"{privacy_json} counts releases that the journal beside it does not have, as it is of another run or of a "
            "copy of this one that was resumed elsewhere: put it back where it belongs, or save the pipeline again."
        )


def runs_of_journal(directory: Path) -> list[CountedRun] | None:
    """The run in a directory, with everything released by now, and the previous runs that it counts.

    Args:
        directory (`Path`): The directory of a run.

    Returns:
        `list[CountedRun]`: The own run comes first; None where there is no journal, as with published files.

    Raises:
        StorageError: If the journal is damaged.
    """
    path = journal_in(directory)
    return None if path is None else CountedRun.of_journal(read_released(path))


def journal_in(directory: Path) -> Path | None:
    """The journal of the run in a directory; None if no run has begun there, or if it has published files only."""
    path = RunPaths(directory).journal
    return path if path.is_file() and path.stat().st_size > 0 else None


def leaves_out(statement: PrivacyStatement, released: Sequence[CountedRun]) -> bool:
    """Whether a run has released something that its statement does not count.

    Args:
        statement (`PrivacyStatement`): The content of its privacy.json.
        released (`Sequence[CountedRun]`): The runs that its journal counts.
    """
    return not _count_all_of(statement.runs, released)


def check_journal(directory: Path, privacy: PrivacyStatement, released: Sequence[CountedRun] | None) -> None:
    """Refuse to publish a statement that leaves out something that the run has released.

    Args:
        directory (`Path`): The directory of the run, or one with its published files only.
        privacy (`PrivacyStatement`): The content of the run's privacy.json.
        released (`Sequence[CountedRun]`, *optional*): The runs that the run counts; read from its journal by default.

    Raises:
        InputError: If the journal in `directory` has releases that the statement does not count.
    """
    if released is None:
        released = runs_of_journal(directory)  # a directory of published files was checked when it was written
    if released is not None and leaves_out(privacy, released):
        raise InputError(
            f"{RunPaths(directory).journal} has releases that privacy.json does not count, as the run was continued "
            "after it was saved: save the pipeline again before it is pushed."
        )


def check_replaces(privacy: PrivacyStatement, published: PrivacyStatement, where: str) -> None:
    """Refuse to replace a published statement that counts releases of the same run which the new one does not count.

    Args:
        privacy (`PrivacyStatement`): The statement to publish.
        published (`PrivacyStatement`): The statement to be replaced.
        where (`str`): Where that statement is, in words.

    Raises:
        InputError: If the statements are of separately resumed copies of one run, or the published one is newer.
    """
    own, *previous = privacy.runs
    for there in published.runs:
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
    """Whether `runs` count everything that `others` count, run by run; each has its own run first."""
    return len(runs) >= len(others) and all(run.covers(other) for run, other in zip(runs, others, strict=False))
