"""The privacy ledger: every mechanism that read sensitive records, and the one epsilon they amount to.

Every mechanism of this library is a Poisson-subsampled Gaussian mechanism, so a triple (noise multiplier, sample rate,
steps) says all that an accountant needs. The accountants themselves are those of Opacus.
"""

import json
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from opacus.accountants import PRVAccountant, RDPAccountant

from .errors import InputError


PUBLIC_ASSUMPTIONS = (
    "the number of records N",
    "the list of classes",
    "the image size, the number of channels and the pixel range [0, 1]",
    "all hyper-parameters",
)

# Opacus stops at order 63, too early for large noise multipliers, where the best order is in the hundreds.
# Beyond 1,000 its binomial coefficients overflow.
RDP_ORDERS = (
    [1 + x / 10 for x in range(1, 100)] + list(range(12, 64)) + [80, 96, 128, 160, 192, 256, 384, 512, 768, 1000]
)


@dataclass(frozen=True)
class Mechanism:
    """`steps` executions of one Poisson-subsampled Gaussian mechanism.

    Args:
        name (`str`): What was released, for instance `"central_images_mean"` or `"dp_sgd"`.
        noise_multiplier (`float`): Standard deviation of the noise over the sensitivity, > 0.
        sample_rate (`float`): Probability with which each record takes part in a step, in (0, 1].
        steps (`int`): Number of executions, >= 1.
        sensitivity (`float`): L2 norm of the most that one record adds to the released sum, in the sum's own units.

    Raises:
        InputError: If a value is out of range.
    """

    name: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    sensitivity: float

    def __post_init__(self):
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise InputError(f"The noise multiplier of {self.name} is {self.noise_multiplier}: give a number above 0.")
        if not 0 < self.sample_rate <= 1:
            raise InputError(f"The sample rate of {self.name} is {self.sample_rate}: give a number in (0, 1].")
        if self.steps < 1:
            raise InputError(f"{self.name} has {self.steps} steps: give at least 1.")
        if not (math.isfinite(self.sensitivity) and self.sensitivity > 0):
            raise InputError(f"The sensitivity of {self.name} is {self.sensitivity}: give a number above 0.")


def compute_epsilon(mechanisms: Iterable[Mechanism], delta: float, accountant: str = "prv") -> float:
    """Epsilon at `delta` of the composition of `mechanisms`, for adding or removing one record.

    Args:
        mechanisms (`Iterable[Mechanism]`): What was executed, in any order.
        delta (`float`): In (0, 1).
        accountant (`str`, *optional*, defaults to `"prv"`):
            `"prv"` (numerical composition, Gopi et al. 2021, arXiv:2106.02848; its upper bound is returned) or `"rdp"`
            (Rényi DP of the sampled Gaussian mechanism, Mironov et al. 2019, arXiv:1908.10530).

    Returns:
        `float`: An upper bound on epsilon; 0 if nothing was executed.

    Raises:
        InputError: If there is no such accountant, or it cannot bound this composition.
    """
    _check_accountant(accountant)
    history = [(m.noise_multiplier, m.sample_rate, m.steps) for m in mechanisms]
    if not history:
        return 0.0
    try:
        epsilon = _rdp_epsilon(history, delta) if accountant == "rdp" else _prv_epsilon(history, delta)
    except (ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise InputError(
            f"The {accountant} accountant cannot bound this composition ({error}): raise the noise multipliers, or try "
            f"`--accountant {'prv' if accountant == 'rdp' else 'rdp'}`."
        ) from error
    if not math.isfinite(epsilon):
        raise InputError(f"The {accountant} accountant finds no finite epsilon: raise the noise multipliers.")
    return max(epsilon, 0.0)


def _check_accountant(accountant: str) -> None:
    if accountant not in ("prv", "rdp"):
        raise InputError(f'The accountant is "{accountant}": choose "prv" or "rdp".')


def _prv_epsilon(history: list[tuple[float, float, int]], delta: float) -> float:
    accountant = PRVAccountant()
    accountant.history = history
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        # The RDP orders only choose how wide the grid of the privacy loss is; a loose choice is a wide, safe grid.
        warnings.filterwarnings("ignore", message="Optimal order is the largest alpha")
        epsilon = accountant.get_epsilon(delta, eps_error=0.01)
        # The bound lies `eps_error` above the estimate: half a percent at most.
        return accountant.get_epsilon(delta, eps_error=max(epsilon / 200, 1e-4)) if epsilon < 2 else epsilon


def _rdp_epsilon(history: list[tuple[float, float, int]], delta: float) -> float:
    accountant = RDPAccountant()
    accountant.history = history
    return accountant.get_epsilon(delta, alphas=RDP_ORDERS)


def calibrate_noise_multiplier(
    target_epsilon: float,
    delta: float,
    mechanism: Mechanism,
    prior: Sequence[Mechanism] = (),
    accountant: str = "prv",
    tolerance: float = 0.005,
) -> float:
    """The smallest noise multiplier with which `prior` and `mechanism` together stay within the target.

    Args:
        target_epsilon (`float`): Budget of everything together.
        delta (`float`): In (0, 1).
        mechanism (`Mechanism`): The mechanism to calibrate; its own noise multiplier is ignored.
        prior (`Sequence[Mechanism]`, *optional*): What the same budget pays for besides.
        accountant (`str`, *optional*, defaults to `"prv"`): See [`compute_epsilon`].
        tolerance (`float`, *optional*, defaults to 0.005): Epsilon ends in `((1 - tolerance) * target, target]`.

    Raises:
        InputError: If `prior` alone exceeds the target, or no noise multiplier up to 10,000 meets it.
    """
    prior_epsilon = compute_epsilon(prior, delta, accountant)
    if prior_epsilon >= target_epsilon:
        raise InputError(
            f"The central images alone cost epsilon {prior_epsilon:.3f}, which leaves nothing of the target "
            f"{target_epsilon:g} for DP-SGD: raise central_noise_multiplier, or lower central_sample_rate or "
            "central_images_per_class."
        )

    def epsilon(sigma: float) -> float:
        try:
            return compute_epsilon([*prior, replace(mechanism, noise_multiplier=sigma)], delta, accountant)
        except InputError:
            return math.inf  # accountants give up where there is next to no noise

    low, high = 0.5, 1.0
    while (epsilon_high := epsilon(high)) > target_epsilon:
        low, high = high, 2 * high
        if high > 10_000:
            raise InputError(
                f"No noise multiplier up to 10,000 keeps {mechanism.steps} steps at sample rate "
                f"{mechanism.sample_rate:.4g} within epsilon {target_epsilon:g}: take fewer steps or a larger target."
            )
    while (epsilon_low := epsilon(low)) <= target_epsilon:
        low, high, epsilon_high = low / 2, low, epsilon_low
    # Between the two, log epsilon is close to linear in log sigma; aim at the middle of what is tolerated.
    aim = (1 - tolerance / 2) * target_epsilon
    while epsilon_high <= (1 - tolerance) * target_epsilon and high / low > 1 + 1e-6:
        fraction = 0.5
        if math.isfinite(epsilon_low):
            fraction = math.log(epsilon_low / aim) / math.log(epsilon_low / epsilon_high)
        middle = low * (high / low) ** min(max(fraction, 0.02), 0.98)
        epsilon_middle = epsilon(middle)
        if epsilon_middle <= target_epsilon:
            high, epsilon_high = middle, epsilon_middle
        else:
            low, epsilon_low = middle, epsilon_middle
    return high


class PrivacyLedger:
    """All mechanisms of one run in order, with the journal that makes them durable before their output exists.

    The order of calls is the guarantee: [`record`] first, and only then may a mechanism compute what it releases. A
    crash in between counts a release that never happened; nothing can be released uncounted.

    Args:
        delta (`float`): Delta of the whole run, in (0, 1).
        accountant (`str`, *optional*, defaults to `"prv"`): `"prv"` or `"rdp"`.
        journal (`str` or `Path`, *optional*):
            File of one JSON line a record, created (never overwritten) and synced to disk on every [`record`]. Without
            it the ledger lives in memory only.

    Raises:
        InputError: If delta or the accountant is not usable, or the journal exists.
    """

    def __init__(self, delta: float, accountant: str = "prv", journal: str | Path | None = None):
        if not 0 < delta < 1:
            raise InputError(f"delta is {delta}: give a number between 0 and 1, below 1/N.")
        _check_accountant(accountant)
        self.versions = {name: version(name) for name in ("diffusers-dp-curriculum", "diffusers", "opacus", "torch")}
        self.delta = delta
        self.accountant = accountant
        self._mechanisms: list[Mechanism] = []
        self._journal = None
        if journal is not None:
            try:
                self._journal = open(journal, "x", encoding="utf-8")  # noqa: SIM115 - open for as long as the ledger
            except FileExistsError:
                raise InputError(f"{journal} is the journal of another run: choose another directory.") from None
            _sync_directory(Path(journal).parent)

    @property
    def mechanisms(self) -> list[Mechanism]:
        """What was executed, in order, with equal neighbours merged."""
        return list(self._mechanisms)

    def record(self, mechanism: Mechanism) -> None:
        """Count `mechanism`. Call it before computing what the mechanism releases.

        When this returns the entry is on disk (if there is a journal).
        """
        if self._journal is not None:
            self._journal.write(json.dumps(asdict(mechanism)) + "\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        last = self._mechanisms[-1] if self._mechanisms else None
        if last is not None and replace(last, steps=mechanism.steps) == mechanism:
            self._mechanisms[-1] = replace(last, steps=last.steps + mechanism.steps)
        else:
            self._mechanisms.append(mechanism)

    def epsilon(self, planned: Iterable[Mechanism] = ()) -> float:
        """Epsilon spent so far, and on the `planned` mechanisms if there are any."""
        return compute_epsilon([*self._mechanisms, *planned], self.delta, self.accountant)

    def statement(self, dataset_size: int) -> dict:
        """The content of privacy.json: enough for a stranger to recompute epsilon without this library."""
        return {
            "epsilon": self.epsilon(),
            "delta": self.delta,
            "accountant": self.accountant,
            "adjacency": "add_or_remove_one_record",
            "dataset_size": dataset_size,
            "private": True,
            "mechanisms": [asdict(mechanism) for mechanism in self._mechanisms],
            "public_assumptions": list(PUBLIC_ASSUMPTIONS),
            "versions": self.versions,
        }


def _sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable, as `os.fsync` of a file makes its content."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
