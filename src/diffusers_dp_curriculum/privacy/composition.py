"""Several runs on the same records: their statements are found, each run is counted once, and epsilon is added up."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from ..errors import HubError, InputError
from ..files import local_path
from ..names import is_on_hub, no_such_run
from ..units import RECORD
from .accounting import LOOSE
from .counted_runs import CountedRun, count_once
from .journal import Released, read_released
from .ledger import package_versions, public_assumptions, unit_and_assumptions
from .publishability import check_epsilon, check_same_run, journal_in, leaves_out
from .statement import PrivacyStatement, make_statement, scope_in_words, scope_of


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundStatement:
    """A privacy statement about a run, as it was found.

    Args:
        name (`str`): The name of the run in messages.
        statement (`PrivacyStatement`): The statement.
        stated_epsilon (`float`, *optional*):
            Epsilon in the privacy.json, which can be less than that of `statement` if this was made from the journal
            beside it; None if there is no privacy.json yet.
        outdated (`str`, *optional*): A sentence about a privacy.json that counts less than the journal beside it.
    """

    name: str
    statement: PrivacyStatement
    stated_epsilon: float | None
    outdated: str | None = None

    def check(self) -> None:
        """Refuse to count a run that gives no privacy, or whose statement understates epsilon.

        Raises:
            InputError: If the run is not private, or its statement understates epsilon.
        """
        if not self.statement.private:
            raise InputError(
                f"{self.name} is not private, and no epsilon covers what it has released: share nothing of that run, "
                "and leave it out."
            )
        check_epsilon(self.statement, self.name)


@dataclass(frozen=True)
class Composition:
    """The sum of several statements.

    Args:
        statement (`PrivacyStatement`): One statement about all of the runs.
        counted (`list[tuple[str, CountedRun]]`): The runs that are counted, each after its name in messages.
        remarks (`list[str]`): A sentence about each choice that was made, such as that of delta.
    """

    statement: PrivacyStatement
    counted: list[tuple[str, CountedRun]]
    remarks: list[str]


def find_statements(run: str) -> list[FoundStatement]:
    """Find the privacy statement of a run, or two of them if the Hub has both a model and a data set of that name.

    In the directory of a run the journal decides: it has everything released by now, also by an interrupted run.

    Args:
        run (`str`):
            A privacy.json, the directory of a run, of its published files or of a synthetic data set, or the Hub id of
            a model or data set.

    Raises:
        InputError: If nothing is found, or what is found cannot be read or contradicts itself.
        HubError: If the statement has to be fetched from the Hub, which is out of reach or refuses.
    """
    path = local_path(run)
    try:
        if path.is_dir():
            return [_in_directory(path, run)]
        if path.name == "privacy.json" and journal_in(path.parent) is not None:
            return [_in_directory(path.parent, run)]
        if path.is_file():
            return [_in_file(path, run)]
    except OSError as error:
        raise InputError(f"{run} cannot be read ({error.strerror}): make it readable.") from error
    return _on_the_hub(run)


def compose(
    statements: Sequence[FoundStatement], delta: float | None = None, accountant: str | None = None
) -> Composition:
    """Add up what several runs on the same records have released, each run counted once.

    A composition holds at any delta. By default it is the smallest of the statements, which keeps to the delta that was
    chosen for each of them.

    Args:
        statements (`Sequence[FoundStatement]`): The statements to add up.
        delta (`float`, *optional*): Delta of all runs together; by default the smallest delta of the statements.
        accountant (`str`, *optional*): By default the accountant that all statements have, or `"prv"` if they differ.

    Raises:
        InputError:
            If a run is not private or its statement understates epsilon, if the runs have different units of privacy,
            or if the accountant cannot bound the sum.
    """
    unit = statements[0].statement.unit if statements else RECORD
    counted, remarks = _count(statements, unit)
    deltas = {found.statement.delta for found in statements}
    accountants = {found.statement.accountant for found in statements}
    if delta is None:
        delta = min(deltas)
        if len(deltas) > 1:
            remarks.append(f"The statements have several deltas: all of it is added up at the smallest, {delta:g}.")
    if accountant is None:
        accountant = accountants.pop() if len(accountants) == 1 else "prv"
        if accountants:
            remarks.append(f"The statements are by several accountants: all of it is added up by {accountant}.")
    runs = [run for _, run in counted]
    sizes = [found.statement.dataset_size for found in statements]
    assumptions = [text for found in statements for text in found.statement.public_assumptions]
    statement = make_statement(
        runs,
        delta,
        accountant,
        scope=scope_of(f"{len(runs)} run{'s' * (len(runs) > 1)}"),
        dataset_size=sizes[0] if all(size == sizes[0] for size in sizes) else None,
        not_private=None,
        unit=unit,
        remarks=[text for found in statements for text in found.statement.remarks if text != LOOSE],
        public_assumptions=dict.fromkeys(assumptions),
        versions=package_versions(),
    )
    return Composition(statement, counted, remarks)


def read_prior_runs(runs: Sequence[str], unit: str = RECORD) -> list[CountedRun]:
    """The previous runs that a new run has to count, including the previous runs that they count themselves.

    A warning is logged for each run that was found twice and is counted once, and for each that may be counted twice.

    Args:
        runs (`Sequence[str]`): The runs, each as [`find_statements`] takes it.
        unit (`str`, *optional*, defaults to `"record"`): The unit of privacy of the new run.

    Raises:
        InputError:
            If a run is not found or not private, its statement understates epsilon, or it has another unit of privacy.
        HubError: If a statement has to be fetched from the Hub, which is out of reach or refuses.
    """
    counted, remarks = _count([found for run in runs for found in find_statements(run)], unit)
    for remark in remarks:
        logger.warning(remark)
    return [run for _, run in counted]


def _count(statements: Sequence[FoundStatement], unit: str) -> tuple[list[tuple[str, CountedRun]], list[str]]:
    runs = []
    for found in statements:
        found.check()
        if found.statement.unit != unit:
            raise InputError(
                f"{found.name} protects each {found.statement.unit}, and what it is added to protects each {unit}: add "
                "up runs with the same unit of privacy alone."
            )
        own, *previous = found.statement.runs
        runs.append((found.name, own))
        runs += [(f"previous run {number} of {found.name}", run) for number, run in enumerate(previous, start=1)]
    counted, remarks = count_once(runs)
    return counted, [found.outdated for found in statements if found.outdated] + remarks


def _in_file(path: Path, name: str) -> FoundStatement:
    statement = PrivacyStatement.read(path, name)
    return FoundStatement(name, statement, statement.epsilon)


def _in_directory(directory: Path, name: str) -> FoundStatement:
    journal, file = journal_in(directory), directory / "privacy.json"
    if journal is None and not file.is_file():
        raise InputError(f"{name} holds neither a privacy.json nor the journal of a run: give the directory of a run.")
    if journal is None:
        return _in_file(file, name)
    released = read_released(journal)
    statement = _of_journal(released)
    if not file.is_file():
        return FoundStatement(name, statement, None)
    stated = _in_file(file, str(file))
    stated.check()
    check_same_run(file, stated.statement)
    outdated = None
    if leaves_out(stated.statement, CountedRun.of_journal(released)):
        outdated = (
            f"{file} counts less than {journal}, which decides: the run was continued after it was saved, so save the "
            "pipeline again before anything more of it is published."
        )
    statement = replace(
        statement,
        dataset_size=stated.statement.dataset_size,
        public_assumptions=stated.statement.public_assumptions or statement.public_assumptions,
        remarks=tuple(dict.fromkeys([*statement.remarks, *stated.statement.remarks])),
    )
    return FoundStatement(name, statement, stated.stated_epsilon, outdated)


def _of_journal(released: Released) -> PrivacyStatement:
    """The statement that a privacy.json of the run would make now."""
    runs = CountedRun.of_journal(released)
    unit, initial_weights, public_models = unit_and_assumptions(released.header)
    return make_statement(
        runs,
        released.header["delta"],
        released.header["accountant"],
        scope=scope_in_words(len(runs) - 1),
        dataset_size=None,
        not_private=released.not_private,
        unit=unit,
        public_assumptions=public_assumptions(unit, initial_weights, public_models),
        versions=package_versions(),
    )


def _on_the_hub(repo_id: str) -> list[FoundStatement]:
    """The statement of each repository of this name; there may be two, a model and a data set."""
    found = []
    for kind, repo_type in (("model", "model"), ("data set", "dataset")):
        if not is_on_hub(repo_id, repo_type):
            continue
        # Not through the cache: without a connection it would give an earlier copy, which may count less.
        with tempfile.TemporaryDirectory() as directory:
            try:
                path = hf_hub_download(repo_id, "privacy.json", repo_type=repo_type, local_dir=directory)
            except LocalEntryNotFoundError as error:
                raise HubError(
                    f"{repo_id} is no path, and the Hub is out of reach: check the path, or try again."
                ) from error
            except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
                continue
            except Exception as error:  # the Hub's client and its HTTP library each raise their own
                raise HubError(
                    f"{repo_id} is no path, and cannot be fetched from the Hub ({type(error).__name__}): check it."
                ) from error
            found.append(_in_file(Path(path), f"{repo_id} ({kind})"))
    if not found:
        raise no_such_run(repo_id)
    return found
