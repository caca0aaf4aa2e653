"""The privacy ledger: every mechanism that read sensitive records, in order, and the one epsilon they amount to."""

import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from ..errors import InputError
from .accounting import Mechanism, check_accounting, compute_epsilon, merge_neighbours
from .counted_runs import CountedRun, all_mechanisms
from .execution import Execution
from .journal import Journal, Released
from .statement import PrivacyStatement, make_statement, scope_in_words


PUBLIC_ASSUMPTIONS = (
    "the number of records N",
    "the list of classes",
    "the image size, the number of channels and the pixel range [0, 1]",
    "all hyper-parameters",
    "the initial weights of the network, which have learned nothing from these records",
)


class Randomness(Protocol):
    """What the ledger asks of the source of a mechanism's sampling and noise."""

    @property
    def why_not_private(self) -> str | None:
        """Why a mechanism with this randomness gives no privacy; None if it gives privacy."""


class PrivacyLedger:
    """All mechanisms of one run in order, with the journal that makes them durable before their output exists.

    The order of calls is the guarantee: a mechanism starts with [`begin`] and computes what it releases within
    [`Execution.step`], which records the step first. A crash in between counts a release that never happened; nothing
    can be released uncounted. What is recorded counts for good, unless nobody can have seen anything of it (see
    [`unseen`]).

    Args:
        delta (`float`): Delta of the whole run, in [1e-12, 1).
        accountant (`str`, *optional*, defaults to `"prv"`): `"prv"` or `"rdp"`.
        journal (`str` or `Path`, *optional*):
            File of one JSON line an event, created (never overwritten), locked, and synced to disk on every
            [`record`]. Without it the ledger lives in memory only.
        target_epsilon (`float`, *optional*):
            What the run and the previous runs may spend together; [`check_affordable`] refuses more.
        prior_runs (`Sequence[CountedRun]`, *optional*):
            Previous runs on the same records, whose cost is part of this run's, such as `read_prior_runs` in
            `composition.py` finds. The journal keeps them from its first line on.

    Raises:
        InputError: If delta or the accountant is not usable, or the journal exists.

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
    ):
        check_accounting(delta, accountant)
        self.versions = package_versions()
        self.delta = delta
        self.accountant = accountant
        self.target_epsilon = target_epsilon
        self.prior_runs = list(prior_runs)
        self.not_private: str | None = None
        self._run, self._session = secrets.token_hex(8), secrets.token_hex(8)  # where there is no journal to say it
        self._mechanisms: list[Mechanism] = []
        self._unseen = False
        self._pending = False  # whether anything unseen has not been marked as visible yet
        self._journal = None
        if journal is not None:
            header = {"delta": delta, "accountant": accountant, "target_epsilon": target_epsilon}
            self._journal = Journal(journal, {**header, "prior_runs": [run.to_dict() for run in self.prior_runs]})

    @classmethod
    def resume(cls, journal: Journal | str | Path, position: int, check: int | None = None) -> "PrivacyLedger":
        """Continue the ledger of a run that was interrupted.

        What was released after the checkpoint stays counted, unless it was lost with its process before anything that
        depends on it could be seen (see [`unseen`]).

        Args:
            journal (`str` or `Path`): The run's journal; or a [`Journal`] that is open, and stays open if this fails.
            position (`int`): The ledger's [`position`] when the checkpoint was made from which the run continues.
            check (`int`, *optional*): The ledger's [`check`] at that time.

        Raises:
            InputError: If the journal is missing, in use by another process, or does not know of the checkpoint.
            StorageError: If the journal is damaged.
        """
        opened = journal if isinstance(journal, Journal) else Journal(journal)
        try:
            opened.resume(position, check)
            header = opened.header
            prior_runs = CountedRun.of_header(header)
            ledger = cls(header["delta"], header["accountant"], None, header["target_epsilon"], prior_runs)
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
        """A copy of what was executed so far, without the journal: for the processes of a run that do not write it."""
        ledger = PrivacyLedger(self.delta, self.accountant, None, self.target_epsilon, self.prior_runs)
        ledger.not_private = self.not_private
        ledger._mechanisms = self.mechanisms
        return ledger

    def close(self) -> None:
        """Release the journal's lock, so that the run can be resumed, also in this process."""
        if self._journal is not None:
            if self._pending:  # the mark at the end of `unseen` was interrupted
                self._mark_whatever_happens("the memory of the process")
            self._journal.close()

    @property
    def mechanisms(self) -> list[Mechanism]:
        """What this run has executed, in order, with equal neighbours merged; the previous runs are not in it."""
        return list(self._mechanisms)

    @property
    def position(self) -> int:
        """How far the journal is: kept in a checkpoint, and given to [`resume`]. Without a journal it is 0."""
        return 0 if self._journal is None else self._journal.position

    def begin(self, mechanism: Mechanism, randomness: Randomness) -> Execution:
        """Begin to execute a mechanism: the one way to do so.

        Refuses what the target cannot pay for, and notes it for good if the randomness gives no privacy. Each step is
        then taken within [`Execution.step`], which records it before anything is read.

        Args:
            mechanism (`Mechanism`): With the number of its steps.
            randomness (`Randomness`): Where its sampling and noise come from, such as a `MechanismRandomness`.

        Returns:
            `Execution`: What its steps are taken with.

        Raises:
            InputError: If all steps together would pass the target; nothing has been recorded then.
        """
        self.check_affordable(mechanism)
        if randomness.why_not_private:
            self.mark_not_private(randomness.why_not_private)
        return Execution(mechanism, self.record)

    @property
    def check(self) -> int:
        """A checksum of the journal: kept in a checkpoint, and given to [`resume`]. Without a journal it is 0."""
        return 0 if self._journal is None else self._journal.check

    def record(self, mechanism: Mechanism) -> None:
        """Count `mechanism`, which is about to be executed; mechanisms call [`begin`], whose steps call this.

        When this returns the entry is on disk (if there is a journal).

        Args:
            mechanism (`Mechanism`): With the number of its steps.
        """
        if self._journal is not None:
            self._journal.release(mechanism, self._unseen)
            self._pending = self._unseen
        self._count(mechanism)

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Promise that what is recorded in this context stays inside the process, but for what is marked as visible.

        Only releases of such a context can be dropped by [`resume`], and only if the process died in it without a
        word (SIGKILL, a power cut): however else the context ends, everything recorded in it counts for good before
        control returns to the caller, who can look at what is in memory.
        """
        self._unseen = True
        try:
            yield
        finally:
            self._unseen = False
            self._mark_whatever_happens("the memory of the process")

    def _mark_whatever_happens(self, what: str) -> None:
        """Mark as visible even if Ctrl-C is pressed again and again: the event is written before it has an effect."""
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
        """Note that something is about to leave the process. Call it before it can.

        Everything recorded so far counts from then on, also if the run is resumed from an earlier checkpoint.

        Args:
            what (`str`): What will be visible, in words.
        """
        if self._journal is not None:
            self._journal.append("visible", what)
            self._pending = False

    def mark_not_private(self, reason: str) -> None:
        """Note, for good, that this run gives no privacy: its statement will say so, and it may not be published.

        Args:
            reason (`str`): Why, in words; the first one stays.
        """
        if self.not_private is None:
            if self._journal is not None:
                self._journal.append("not_private", reason)
            self.not_private = reason

    def check_affordable(self, mechanism: Mechanism) -> None:
        """Refuse a mechanism, all its steps, where it would pass the target.

        Args:
            mechanism (`Mechanism`): With the number of its steps.

        Raises:
            InputError: If so; nothing has been recorded.
        """
        if self.target_epsilon is not None and self.epsilon([mechanism]) > self.target_epsilon:
            raise InputError(
                f"{mechanism.steps} steps of {mechanism.name} would pass the target epsilon {self.target_epsilon:g}: "
                f"at most {self.affordable_steps(mechanism)} fit."
            )

    def affordable_steps(self, mechanism: Mechanism) -> int:
        """How many steps of a mechanism, at most its own, stay within the target after all that was executed.

        Args:
            mechanism (`Mechanism`): With the number of its steps.
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
            planned (`Iterable[Mechanism]`, *optional*): What to count besides, as if it had been executed.
        """
        executed = [*all_mechanisms(self.prior_runs), *self._mechanisms]
        return compute_epsilon([*executed, *planned], self.delta, self.accountant)

    def statement(self, dataset_size: int) -> PrivacyStatement:
        """What privacy.json says: enough for a stranger to recompute epsilon without this library.

        Args:
            dataset_size (`int`): N, the number of records, which is public.
        """
        return make_statement(
            self.counted_runs(),
            self.delta,
            self.accountant,
            scope=scope_in_words(len(self.prior_runs)),
            dataset_size=dataset_size,
            not_private=self.not_private,
            public_assumptions=PUBLIC_ASSUMPTIONS,
            versions=self.versions,
        )

    def counted_runs(self) -> list[CountedRun]:
        """This run, and then the previous runs, as a statement names them."""
        if self._journal is not None:
            return CountedRun.of_journal(Released.of(self._journal.events))
        releases = sum(mechanism.steps for mechanism in self._mechanisms)
        own = CountedRun(self._run, {self._session: releases} if releases else {}, self.mechanisms)
        return [own, *self.prior_runs]

    def _count(self, mechanism: Mechanism) -> None:
        self._mechanisms = merge_neighbours([*self._mechanisms, mechanism])


def package_versions() -> dict[str, str]:
    """The versions that a statement names."""
    return {name: version(name) for name in ("diffusers-dp-curriculum", "diffusers", "opacus", "torch")}
