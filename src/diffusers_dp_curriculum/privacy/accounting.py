"""Privacy accounting: epsilon of a composition of mechanisms, and the noise with which it meets a target.

Every mechanism of this library is a Poisson-subsampled Gaussian mechanism, so an accountant needs nothing but a triple
(noise multiplier, sample rate, steps). The accountants themselves are from Opacus.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context
from functools import lru_cache
from itertools import groupby

import numpy as np
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

from ..checks import ACCOUNTANT, DELTA
from ..errors import InputError


# Opacus stops at order 63, too early for large noise multipliers, where the best order is in the hundreds.
# Beyond 1,000 its binomial coefficients overflow.
RDP_ORDERS = (
    *(1.01, 1.02, 1.05),
    *(1 + x / 10 for x in range(1, 100)),
    *range(12, 64),
    *(80, 96, 128, 160, 192, 256, 384, 512, 768, 1000),
)

ROUGH_RDP_ORDERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)  # whole numbers are quick

# Above these limits PRV needs gigabytes of memory, and no result there is worth publishing. (PRV overflows by itself
# from an epsilon of about 700 on; the limit is compared with a rough bound, which is larger.)
MAX_PRV_EPSILON = 10_000
MAX_PRV_STEPS = 10_000_000

LOOSE = (
    "The rdp accountant's best order is at the end of its range: this epsilon is valid but larger than need be; the "
    "prv accountant has a better one."
)


class LooseEpsilonWarning(UserWarning):
    """Epsilon is a valid upper bound, but the accountant says that it is not tight."""


@dataclass(frozen=True)
class Mechanism:
    """`steps` executions of one Poisson-subsampled Gaussian mechanism.

    Args:
        name (`str`): What was released, for instance `"central_images_mean"` or `"dp_sgd"`.
        noise_multiplier (`float`): Standard deviation of the noise over the sensitivity, > 0.
        sample_rate (`float`): Probability with which each record takes part in a step, in (0, 1].
        steps (`int`): Number of executions, >= 1.
        sensitivity (`float`):
            The largest change of the released sum when one record is zeroed out, as an L2 norm in the sum's own units,
            > 0.

    Raises:
        InputError: If a value is out of range.

    Examples:
        >>> from diffusers_dp_curriculum import Mechanism, compute_epsilon
        >>> dp_sgd = Mechanism("dp_sgd", noise_multiplier=1.0, sample_rate=0.01, steps=1000, sensitivity=1.0)
        >>> round(compute_epsilon([dp_sgd], delta=1e-5, accountant="rdp"), 2)
        2.1
    """

    name: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    sensitivity: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise InputError(f"The noise multiplier of {self.name} is {self.noise_multiplier}: give a number above 0.")
        if not 0 < self.sample_rate <= 1:
            raise InputError(f"The sample rate of {self.name} is {self.sample_rate}: give a number in (0, 1].")
        if self.steps < 1:
            raise InputError(f"{self.name} has {self.steps} steps: give at least 1.")
        if not (math.isfinite(self.sensitivity) and self.sensitivity > 0):
            raise InputError(f"The sensitivity of {self.name} is {self.sensitivity}: give a number above 0.")


def merge_neighbours(mechanisms: Iterable[Mechanism]) -> list[Mechanism]:
    """The same executions in the same order, with neighbours that differ only in their steps merged into one entry.

    Args:
        mechanisms (`Iterable[Mechanism]`): What was executed, in order.
    """
    return [
        replace(kind, steps=sum(mechanism.steps for mechanism in alike))
        for kind, alike in groupby(mechanisms, lambda mechanism: replace(mechanism, steps=1))
    ]


def compute_epsilon(mechanisms: Iterable[Mechanism], delta: float, accountant: str = "prv") -> float:
    """Epsilon at `delta` of the composition of `mechanisms`, for zeroing out one record (see docs/privacy.md).

    Args:
        mechanisms (`Iterable[Mechanism]`): What was executed, in any order.
        delta (`float`): From 1e-12 to 1.
        accountant (`str`, *optional*, defaults to `"prv"`):
            `"prv"` (numerical composition, Gopi et al. 2021, arXiv:2106.02848; its upper bound is returned) or `"rdp"`
            (Rényi DP of the sampled Gaussian mechanism, Mironov et al. 2019, arXiv:1908.10530).

    Returns:
        `float`: An upper bound on epsilon; 0 if nothing was executed.

    Warns:
        LooseEpsilonWarning: If the bound is valid but the accountant says that it is not tight.

    Raises:
        InputError: If `delta` is out of range, or there is no such accountant, or it cannot bound this composition.

    Examples:
        >>> from diffusers_dp_curriculum import Mechanism, compute_epsilon
        >>> central = Mechanism("central_images_mean", noise_multiplier=5.0, sample_rate=0.1, steps=5, sensitivity=4.0)
        >>> dp_sgd = Mechanism("dp_sgd", noise_multiplier=1.0, sample_rate=0.01, steps=1000, sensitivity=1.0)
        >>> f"{compute_epsilon([central, dp_sgd], delta=1e-5):.2f}"
        '1.85'
    """
    check_accounting(delta, accountant)
    # Order does not matter. Equal settings are merged, so that equal spending gives the same epsilon to the last digit.
    steps: dict[tuple[float, float], int] = {}
    for m in mechanisms:
        steps[m.noise_multiplier, m.sample_rate] = steps.get((m.noise_multiplier, m.sample_rate), 0) + m.steps
    if not steps:
        return 0.0
    try:
        epsilon, loose = _epsilon(
            tuple((sigma, q, count) for (sigma, q), count in sorted(steps.items())), delta, accountant
        )
    except (ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise InputError(
            f"The {accountant} accountant cannot bound this composition ({error}): raise the noise multipliers, or try "
            f"`accountant` {'prv' if accountant == 'rdp' else 'rdp'}."
        ) from error
    if not math.isfinite(epsilon):
        raise InputError(f"The {accountant} accountant finds no finite epsilon: raise the noise multipliers.")
    if loose:
        warnings.warn(LOOSE, LooseEpsilonWarning, stacklevel=2)
    return max(epsilon, 0.0)


def check_accounting(delta: float, accountant: str) -> None:
    """Refuse a delta that is out of range, and an accountant that does not exist.

    Raises:
        InputError: If `delta` or `accountant` cannot be used.
    """
    DELTA.check("delta", delta)
    ACCOUNTANT.check("accountant", accountant)


# A run asks for the epsilon of its plan several times, and Opacus takes up to a second to answer.
@lru_cache(maxsize=256)
def _epsilon(history: tuple[tuple[float, float, int], ...], delta: float, accountant: str) -> tuple[float, bool]:
    """Epsilon, and whether the accountant says that it is not tight."""
    return _rdp_epsilon(history, delta, RDP_ORDERS) if accountant == "rdp" else (_prv_epsilon(history, delta), False)


def _prv_epsilon(history: tuple[tuple[float, float, int], ...], delta: float) -> float:
    accountant = PRVAccountant()
    accountant.history = list(history)
    rough, _ = _rdp_epsilon(history, delta, ROUGH_RDP_ORDERS)
    if rough > MAX_PRV_EPSILON or sum(steps for _, _, steps in history) > MAX_PRV_STEPS:
        raise ValueError(f"it takes at most {MAX_PRV_STEPS:,} steps and an epsilon of {MAX_PRV_EPSILON:,}")
    # PRV composes by Fourier transforms in float64, and does not count their rounding: 2^-52 for each step.
    if (rounding := sum(steps for _, _, steps in history) * 2.0**-52) > delta / 10:
        raise ValueError(f"its rounding errors may reach {rounding:.1g}, which is not far enough below delta")
    with warnings.catch_warnings(), np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # PRV uses RDP only to choose the width of its grid of the privacy loss; a loose bound gives a wide, safe grid.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        # The bound lies `eps_error` above the estimate: half a percent at most. A finer grid takes more memory and
        # time.
        eps_error = max(rough / 500, 0.01)
        epsilon = accountant.get_epsilon(delta, eps_error=eps_error)
        if epsilon < 200 * eps_error:
            epsilon = accountant.get_epsilon(delta, eps_error=max(epsilon / 200, 1e-4))
    return float(epsilon)


def _rdp_epsilon(
    history: tuple[tuple[float, float, int], ...], delta: float, orders: tuple[float, ...]
) -> tuple[float, bool]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rdp = sum(steps * _rdp_of_a_step(sigma, sample_rate, orders) for sigma, sample_rate, steps in history)
        epsilon, _ = get_privacy_spent(orders=list(orders), rdp=rdp, delta=delta)
    return float(epsilon), any("Optimal order" in str(warning.message) for warning in caught)


# Fractional orders take half a second. Rényi DP is linear in the steps, so that one step has to be computed once.
@lru_cache(maxsize=256)
def _rdp_of_a_step(sigma: float, sample_rate: float, orders: tuple[float, ...]) -> np.ndarray:
    return compute_rdp(q=sample_rate, noise_multiplier=sigma, steps=1, orders=list(orders))


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
        target_epsilon (`float`): Epsilon that `prior` and `mechanism` may spend together.
        delta (`float`): From 1e-12 to 1.
        mechanism (`Mechanism`): The mechanism to calibrate; its own noise multiplier is ignored.
        prior (`Sequence[Mechanism]`, *optional*): Other mechanisms that the same budget pays for.
        accountant (`str`, *optional*, defaults to `"prv"`): See [`compute_epsilon`].
        tolerance (`float`, *optional*, defaults to 0.005): Epsilon ends in `((1 - tolerance) * target, target]`.

    Returns:
        `float`: The noise multiplier.

    Raises:
        InputError: If `prior` alone exceeds the target, or no noise multiplier up to 10,000 meets it.
    """
    prior_epsilon = compute_epsilon(prior, delta, accountant)
    if prior_epsilon >= target_epsilon:
        raise InputError(
            f"What comes before {mechanism.name} costs epsilon {prior_epsilon:.3f}, which leaves nothing of the target "
            f"{target_epsilon:g} for it: raise the noise multipliers before it, or the target."
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


def round_up(value: float) -> str:
    """`value` rounded up to four digits, since a budget must not be understated."""
    return f"{float(Context(prec=4, rounding=ROUND_CEILING).create_decimal(repr(value))):.4g}"
