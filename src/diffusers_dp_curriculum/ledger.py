"""The privacy ledger: every mechanism that read sensitive records, in order, and the one epsilon they amount to."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .accounting import LooseEpsilonWarning, Mechanism, check_accounting, compute_epsilon
from .errors import InputError
from .journal import Journal


PUBLIC_ASSUMPTIONS = (
    "the number of records N",
    "the list of classes",
    "the image size, the number of channels and the pixel range [0, 1]",
    "all hyper-parameters",
    "the initial weights of the network, which have learned nothing from these records",
)


class PrivacyLedger:
    """All mechanisms of one run in order, with the journal that makes them durable before their output exists.

    The order of calls is the guarantee: [`record`] first, and only then may a mechanism compute what it releases. A
    crash in between counts a release that never happened; nothing can be released uncounted.

    Args:
        delta (`float`): Delta of the whole run, in [1e-12, 1).
        accountant (`str`, *optional*, defaults to `"prv"`): `"prv"` or `"rdp"`.
        journal (`str` or `Path`, *optional*):
            File of one JSON line an event, created (never overwritten), locked, and synced to disk on every [`record`].
            Without it the ledger lives in memory only.
        target_epsilon (`float`, *optional*): What the run may spend; [`check_affordable`] refuses more.

    Raises:
        InputError: If delta or the accountant is not usable, or the journal exists.
    """

    def __init__(
        self,
        delta: float,
        accountant: str = "prv",
        journal: str | Path | None = None,
        target_epsilon: float | None = None,
    ):
        check_accounting(delta, accountant)
        self.versions = {name: version(name) for name in ("diffusers-dp-curriculum", "diffusers", "opacus", "torch")}
        self.delta = delta
        self.accountant = accountant
        self.target_epsilon = target_epsilon
        self.not_private: str | None = None
        self._mechanisms: list[Mechanism] = []
        self._journal = None
        if journal is not None:
            header = {"delta": delta, "accountant": accountant, "target_epsilon": target_epsilon}
            self._journal = Journal(journal, header)

    @classmethod
    def resume(cls, journal: str | Path, position: int, seen: int = 0) -> "PrivacyLedger":
        """Go on with the ledger of a run that was interrupted.

        What was released after the checkpoint stays counted if anything that depends on it was visible
        ([`mark_visible`]) or is in another checkpoint, which somebody may have looked at before choosing this one;
        otherwise it is known to nobody and part of nothing, and is not.

        Args:
            journal (`str` or `Path`): The run's journal.
            position (`int`): The ledger's [`position`] when the checkpoint was made that the run goes on from.
            seen (`int`, *optional*, defaults to 0): That of the newest checkpoint that there is.

        Raises:
            InputError:
                If the journal is missing, damaged, in use by another process, or knows less than the checkpoint.
        """
        opened = Journal(journal)
        header = opened.header
        if max(position, seen) > opened.position:
            opened.close()
            raise InputError(
                f"{journal} ends before the checkpoint was made ({opened.position} events of {max(position, seen)}), "
                "so lines are missing: restore it from a backup, or give the run up and count all of its target "
                "epsilon."
            )
        ledger = cls(header["delta"], header["accountant"], target_epsilon=header["target_epsilon"])
        ledger._journal = opened
        if seen > position:  # it has been gone on with, if only by whoever turned back from it
            opened.append("resume", {"position": seen})
        opened.append("resume", {"position": position})
        for mechanism in opened.counted():
            ledger._count(mechanism)
        reasons = [event["not_private"] for event in opened.events if "not_private" in event]
        ledger.not_private = reasons[0] if reasons else None
        return ledger

    def in_memory(self) -> "PrivacyLedger":
        """What was executed so far, without the journal: for the processes of a run that do not write it."""
        ledger = PrivacyLedger(self.delta, self.accountant, target_epsilon=self.target_epsilon)
        ledger.not_private = self.not_private
        ledger._mechanisms = self.mechanisms
        return ledger

    def close(self) -> None:
        """Let go of the journal, so that the run can be gone on with, also in this process."""
        if self._journal is not None:
            self._journal.close()

    @property
    def mechanisms(self) -> list[Mechanism]:
        """What was executed, in order, with equal neighbours merged."""
        return list(self._mechanisms)

    @property
    def position(self) -> int:
        """How far the journal is: kept in a checkpoint, and given to [`resume`]. Without a journal it is 0."""
        return 0 if self._journal is None else self._journal.position

    def record(self, mechanism: Mechanism) -> None:
        """Count `mechanism`. Call it before computing what the mechanism releases.

        When this returns the entry is on disk (if there is a journal).

        Args:
            mechanism (`Mechanism`): With the number of its steps.
        """
        if self._journal is not None:
            self._journal.append("release", asdict(mechanism))
        self._count(mechanism)

    def mark_visible(self, what: str) -> None:
        """Note that something is about to be seen outside the run. Call it before it can be.

        Everything recorded so far counts from then on, also if the run is resumed from an earlier checkpoint.

        Args:
            what (`str`): What will be seen, in words.
        """
        if self._journal is not None:
            self._journal.append("visible", what)

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
        """Epsilon spent so far.

        Args:
            planned (`Iterable[Mechanism]`, *optional*): What to count besides, as if it had been executed.
        """
        return compute_epsilon([*self._mechanisms, *planned], self.delta, self.accountant)

    def statement(self, dataset_size: int) -> dict[str, Any]:
        """The content of privacy.json: enough for a stranger to recompute epsilon without this library.

        Args:
            dataset_size (`int`): N, the number of records, which is public.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            epsilon = self.epsilon()
        remarks = [str(warning.message) for warning in caught if warning.category is LooseEpsilonWarning]
        if self.not_private is not None:
            remarks.insert(0, f"NOT PRIVATE: {self.not_private}.")
        return {
            "epsilon": epsilon,
            "delta": self.delta,
            "accountant": self.accountant,
            "adjacency": "add_or_remove_one_record",
            "dataset_size": dataset_size,
            "private": self.not_private is None,
            "remarks": remarks,
            "mechanisms": [asdict(mechanism) for mechanism in self._mechanisms],
            "public_assumptions": list(PUBLIC_ASSUMPTIONS),
            "versions": self.versions,
        }

    def _count(self, mechanism: Mechanism) -> None:
        last = self._mechanisms[-1] if self._mechanisms else None
        if last is not None and replace(last, steps=mechanism.steps) == mechanism:
            self._mechanisms[-1] = replace(last, steps=last.steps + mechanism.steps)
        else:
            self._mechanisms.append(mechanism)
