"""The privacy ledger: every mechanism that read sensitive records, in order, and the epsilon of all together."""

import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError
from ..units import RECORD
from .accounting import Mechanism, check_accounting, compute_epsilon, merge_neighbours
from .counted_runs import CountedRun, all_mechanisms
from .execution import Execution
from .journal import Journal, Released
from .statement import PrivacyStatement, make_statement, scope_in_words


PUBLIC_ASSUMPTIONS = (
    "the list of classes",
    "the image size, the number of channels and the pixel range [0, 1]",
    "all hyper-parameters",
)
INITIAL_WEIGHTS = "the initial weights of the network, which have learned nothing from these records"


def public_assumptions(
    unit: str, initial_weights: str = INITIAL_WEIGHTS, public_models: Iterable[str] = ()
) -> tuple[str, ...]:
    """What a statement about records, or about users, assumes to be public.

    Args:
        unit (`str`): The unit of privacy, `"record"` or `"user"`.
        initial_weights (`str`, *optional*): What is assumed of the weights that training began with.
        public_models (`Iterable[str]`, *optional*): What is assumed of other models that the run uses.
    """
    return (f"the number of {unit}s N", *PUBLIC_ASSUMPTIONS, *public_models, initial_weights)


def unit_and_assumptions(header: dict[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    """The unit of privacy of a run, and what it assumes of initial weights and other models, as [`public_assumptions`].

    Args:
        header (`dict`): The first line of a journal. Older versions know no other unit, weights or models.
    """
    initial_weights, models = header.get("initial_weights", INITIAL_WEIGHTS), header.get("public_models", ())
    return header.get("unit", RECORD), initial_weights, tuple(models)


class Randomness(Protocol):
    """The source of a mechanism's sampling and noise, as far as the ledger uses it."""

    @property
    def why_not_private(self) -> str | None:
        """Why a mechanism with this randomness gives no privacy; None if it gives privacy."""


class PrivacyLedger:
    """All mechanisms of one run in order, with the journal that makes them durable before their output exists.

    The order of calls is the guarantee: a mechanism starts with [`begin`] and computes what it releases within
    [`Execution.step`], which records the step first. After a crash in between, a release is counted that never
    happened; no release can go uncounted. A recorded step counts permanently, unless nobody can have seen anything that
    depends on it (see [`unseen`]).

    Args:
        delta (`float`): Delta of the whole run, in [1e-12, 1).
        accountant (`str`, *optional*, defaults to `"prv"`): `"prv"` or `"rdp"`.
        journal (`str` or `Path`, *optional*):
            File with one JSON line per event. It is created (never overwritten), locked, and synced to disk by every
            [`record`]. Without it the ledger is in memory only.
        target_epsilon (`float`, *optional*):
            Epsilon that the run and the previous runs may spend together; [`check_affordable`] refuses more.
        prior_runs (`Sequence[CountedRun]`, *optional*):
            Previous runs on the same records, whose cost is added to this run's; `read_prior_runs` in `composition.py`
            finds them. The first line of the journal keeps them.
        unit (`str`, *optional*, defaults to `"record"`):
            The unit of privacy, `"record"` or `"user"`, of all mechanisms and previous runs.
        initial_weights (`str`, *optional*):
            What is assumed of the weights that training began with, in words that are published. The first line of the
            journal keeps it.
        public_models (`Sequence[str]`, *optional*):
            What is assumed of other models that the run uses, such as an autoencoder, in words that are published. The
            first line of the journal keeps it.

    Raises:
        InputError: If delta or the accountant cannot be used, or the journal exists already.

    Examples:
        >>> from diffusers_dp_curriculum import Mechanism, MechanismRandomness, PrivacyLedger
        >>> ledger = PrivacyLedger(delta=1e-5, target_epsilon=1.0)
        >>> mechanism = Mechanism("a_noisy_sum", noise_multiplier=8.0, sample_rate=0.1, steps=3, sensitivity=1.0)
        >>> execution = ledger.begin(mechanism, MechanismRandomness())
        >>> for _ in range(mechanism.steps):
        ...     with execution.step():
        ...         pass  # sample, sum and add noise
        >>> f"{ledger.epsilon():.2f}"
        '0.07'
        >>> ledger.statement(dataset_size=60_000).private
        True
    """

    def __init__(
        self,
        delta: float,
        accountant: str = "prv",
        journal: str | Path | None = None,
        target_epsilon: float | None = None,
        prior_runs: Sequence[CountedRun] = (),
        unit: str = RECORD,
        initial_weights: str = INITIAL_WEIGHTS,
        public_models: Sequence[str] = (),
    ):
        check_accounting(delta, accountant)
        self.unit = unit
        self.initial_weights = initial_weights
        self.public_models = tuple(public_models)
        self.versions = package_versions()
        self.delta = delta
        self.accountant = accountant
        self.target_epsilon = target_epsilon
        self.prior_runs = list(prior_runs)
        self.not_private: str | None = None
        self._run, self._session = secrets.token_hex(8), secrets.token_hex(8)  # a journal has names of its own
        self._mechanisms: list[Mechanism] = []
        self._unseen = False
        self._pending = False  # whether anything unseen has not been marked as visible yet
        self._journal = None
        if journal is not None:
            header = {"unit": unit, "delta": delta, "accountant": accountant, "target_epsilon": target_epsilon}
            prior_runs_in_json = [run.to_dict() for run in self.prior_runs]
            assumed = {"initial_weights": initial_weights, "public_models": list(public_models)}
            self._journal = Journal(journal, {**header, **assumed, "prior_runs": prior_runs_in_json})

    @classmethod
    def resume(cls, journal: Journal | str | Path, position: int, check: int | None = None) -> "PrivacyLedger":
        """Continue the ledger of a run that was interrupted.

        What was released after the checkpoint stays counted, unless the process was killed before anything that depends
        on the release could be seen (see [`unseen`]).

        Args:
            journal (`str` or `Path`): The run's journal, or an open [`Journal`], which stays open if this call fails.
            position (`int`): The ledger's [`position`] when the checkpoint to resume from was made.
            check (`int`, *optional*): The ledger's [`check`] when that checkpoint was made.

        Raises:
            InputError: If the journal is missing, in use by another process, or does not know of the checkpoint.
            StorageError: If the journal is damaged.
        """
        opened = journal if isinstance(journal, Journal) else Journal(journal)
        try:
            opened.resume(position, check)
            header = opened.header
            prior_runs = CountedRun.of_header(header)
            target = header["target_epsilon"]
            ledger = cls(header["delta"], header["accountant"], None, target, prior_runs, *unit_and_assumptions(header))
        except BaseException:
            if opened is not journal:
                opened.close()
            raise
        ledger._journal = opened
        for mechanism in opened.counted():
            ledger._count(mechanism)
        ledger.not_private = Released.of(opened.events).not_private
        return ledger

    def in_memory(self) -> "PrivacyLedger":
        """A copy of this ledger without the journal, for the processes of a run that do not write it."""
        ledger = PrivacyLedger(
            self.delta,
            self.accountant,
            None,
            self.target_epsilon,
            self.prior_runs,
            self.unit,
            self.initial_weights,
            self.public_models,
        )
        ledger.not_private = self.not_private
        ledger._mechanisms = self.mechanisms
        return ledger

    def close(self) -> None:
        """Release the journal's lock, so that the run can be resumed, also in this process."""
        if self._journal is not None:
            if self._pending:  # the mark at the end of `unseen` was interrupted
                self._mark_despite_interrupts("the memory of the process")
            self._journal.close()

    @property
    def mechanisms(self) -> list[Mechanism]:
        """What this run has executed, in order, with equal neighbours merged; the previous runs are not in it."""
        return list(self._mechanisms)

    @property
    def position(self) -> int:
        """The number of events in the journal, which a checkpoint keeps for [`resume`]; 0 without a journal."""
        return 0 if self._journal is None else self._journal.position

    @property
    def check(self) -> int:
        """A checksum of the journal, which a checkpoint keeps for [`resume`]; 0 without a journal."""
        return 0 if self._journal is None else self._journal.check

    def begin(self, mechanism: Mechanism, randomness: Randomness, unit: str = RECORD) -> Execution:
        """Begin to execute a mechanism; there is no other way to begin one.

        A mechanism that the target cannot pay for is refused, and so is one that bounds what another unit of privacy
        contributes than the ledger counts. Randomness that gives no privacy is noted permanently.
        Each step is then taken within [`Execution.step`], which records it before anything is read.

        Args:
            mechanism (`Mechanism`): The mechanism, with the number of its steps.
            randomness (`Randomness`): The source of its sampling and noise, such as a `MechanismRandomness`.
            unit (`str`, *optional*, defaults to `"record"`):
                Whose contribution the mechanism bounds by its sensitivity: `"record"` or `"user"`.

        Returns:
            `Execution`: The execution, whose `step` takes the steps.

        Raises:
            InputError:
                If all steps together would pass the target, or the unit is another than the ledger's. Nothing has been
                recorded in that case.
        """
        if unit != self.unit:
            raise InputError(
                f"{mechanism.name} bounds what one {unit} contributes, and the ledger counts by {self.unit}s: make it "
                f'by PrivacyLedger(..., unit="{unit}").'
            )
        self.check_affordable(mechanism)
        if randomness.why_not_private:
            self.mark_not_private(randomness.why_not_private)
        return Execution(mechanism, self.record)

    def record(self, mechanism: Mechanism) -> None:
        """Count `mechanism`, which is about to be executed; mechanisms call [`begin`], whose steps call this.

        When this returns the entry is on disk (if there is a journal).

        Args:
            mechanism (`Mechanism`): The mechanism, with the number of its steps.
        """
        if self._journal is not None:
            self._journal.release(mechanism, self._unseen)
            self._pending = self._unseen
        self._count(mechanism)

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Promise that nothing which depends on releases of this context leaves the process before [`mark_visible`].

        Only releases of such a context can be dropped by [`resume`], and only if the process was killed within the
        context without warning (SIGKILL, a power cut). If the context ends in any other way, everything recorded in it
        counts permanently before control returns to the caller, who can look at what is in memory.
        """
        self._unseen = True
        try:
            yield
        finally:
            self._unseen = False
            self._mark_despite_interrupts("the memory of the process")

    def _mark_despite_interrupts(self, what: str) -> None:
        """Mark as visible even if Ctrl-C is pressed repeatedly: Ctrl-C takes effect after the event is written."""
        interrupted = False
        while True:
            try:
                self.mark_visible(what)
                break
            except KeyboardInterrupt:
                interrupted = True
        if interrupted:
            raise KeyboardInterrupt

    def mark_visible(self, what: str) -> None:
        """Note that something is about to leave the process; call this before it can be seen.

        Everything recorded so far counts from then on, also if the run is resumed from an earlier checkpoint.

        Args:
            what (`str`): What will be visible, in words, such as `"samples"`.
        """
        if self._journal is not None:
            self._journal.append("visible", what)
            self._pending = False

    def mark_not_private(self, reason: str) -> None:
        """Note permanently that this run gives no privacy: its statement will say so, and it may not be published.

        Args:
            reason (`str`): The reason in words; later calls do not replace the first one.
        """
        if self.not_private is None:
            if self._journal is not None:
                self._journal.append("not_private", reason)
            self.not_private = reason

    def check_affordable(self, mechanism: Mechanism) -> None:
        """Refuse a mechanism if all its steps together would pass the target.

        Args:
            mechanism (`Mechanism`): The mechanism, with the number of its steps.

        Raises:
            InputError: If the target would be passed; nothing has been recorded in that case.
        """
        if self.target_epsilon is not None and self.epsilon([mechanism]) > self.target_epsilon:
            raise InputError(
                f"{mechanism.steps} steps of {mechanism.name} would pass the target epsilon {self.target_epsilon:g}: "
                f"plan at most {self.affordable_steps(mechanism)}."
            )

    def affordable_steps(self, mechanism: Mechanism) -> int:
        """How many steps of a mechanism, at most its own, stay within the target after all that was executed.

        Args:
            mechanism (`Mechanism`): The mechanism, with the number of its steps.
        """
        target = math.inf if self.target_epsilon is None else self.target_epsilon

        def fits(steps: int) -> bool:
            return self.epsilon([replace(mechanism, steps=steps)]) <= target

        if math.isinf(target) or fits(mechanism.steps):
            return mechanism.steps
        enough, too_many = 0, mechanism.steps
        while too_many - enough > 1:
            middle = (enough + too_many) // 2
            enough, too_many = (middle, too_many) if fits(middle) else (enough, middle)
        return enough

    def epsilon(self, planned: Iterable[Mechanism] = ()) -> float:
        """Epsilon spent so far, by this run and the previous runs.

        Args:
            planned (`Iterable[Mechanism]`, *optional*): Mechanisms to count as if they had been executed.
        """
        executed = [*all_mechanisms(self.prior_runs), *self._mechanisms]
        return compute_epsilon([*executed, *planned], self.delta, self.accountant)

    def statement(self, dataset_size: int) -> PrivacyStatement:
        """The content of privacy.json, from which a stranger can recompute epsilon without this library.

        Args:
            dataset_size (`int`): N, the number of records or users, which is public.
        """
        return make_statement(
            self.counted_runs(),
            self.delta,
            self.accountant,
            scope=scope_in_words(len(self.prior_runs)),
            dataset_size=dataset_size,
            not_private=self.not_private,
            unit=self.unit,
            public_assumptions=public_assumptions(self.unit, self.initial_weights, self.public_models),
            versions=self.versions,
        )

    def counted_runs(self) -> list[CountedRun]:
        """This run and then the previous runs, as a statement counts them."""
        if self._journal is not None:
            return CountedRun.of_journal(Released.of(self._journal.events))
        releases = sum(mechanism.steps for mechanism in self._mechanisms)
        own = CountedRun(self._run, {self._session: releases} if releases else {}, self.mechanisms)
        return [own, *self.prior_runs]

    def _count(self, mechanism: Mechanism) -> None:
        self._mechanisms = merge_neighbours([*self._mechanisms, mechanism])


def package_versions() -> dict[str, str]:
    """The versions of packages that a statement names."""
    return {name: version(name) for name in ("diffusers-dp-curriculum", "diffusers", "opacus", "torch")}
