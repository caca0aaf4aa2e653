"""Computes the epsilon that a number of right guesses proves. This is pure statistics, without a model or data.

The setting is that of Steinke et al. 2023, "Privacy Auditing with One (1) Training Run" (arXiv:2305.08846): each canary
is present with probability 1/2, a guess (present or absent) is made for some of the canaries, and some guesses are
right.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from opacus.accountants import PRVAccountant
from scipy import stats

from ..errors import InputError
from ..privacy.accounting import Mechanism, compute_epsilon


# The largest epsilon that is searched: far above any claim, and still fast to compute.
MAX_EPSILON = 50.0


def one_run_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """Compute the largest epsilon that the guesses refute, for an arbitrary (epsilon, delta)-DP mechanism.

    Steinke et al. 2023 (arXiv:2305.08846), Theorem 5.2: the probability that at least `correct` of `guesses` guesses
    are right is at most that of a binomial variable with success probability e^epsilon / (1 + e^epsilon), plus a term
    for delta that grows with the number of canaries.

    Args:
        canaries (`int`): Number of canaries.
        guesses (`int`): Number of guesses.
        correct (`int`): Number of right guesses.
        delta (`float`): Delta.
        confidence (`float`, *optional*, defaults to 0.95): Probability with which a true claim stays above the bound.

    Returns:
        `float`: The bound, 0 if nothing is refuted.
    """

    def refuted(epsilon: float) -> bool:
        success = 1 / (1 + math.exp(-epsilon))
        at_least_correct = stats.binom.sf(correct - 1, guesses, success)
        fewer = np.arange(1, correct + 1)
        nearly = np.cumsum(stats.binom.pmf(correct - fewer, guesses, success))  # P[correct - i <= right < correct]
        worst = max((nearly / fewer).max(), 0.0) if correct else 0.0
        return at_least_correct + 2 * canaries * delta * worst < 1 - confidence

    return _largest_refuted(refuted, 0.0, 30.0)


def trade_off_bound(
    canaries: int,
    guesses: int,
    correct: int,
    mechanisms: Sequence[Mechanism],
    delta: float,
    confidence: float = 0.95,
) -> float:
    """Compute the largest epsilon, at most 50, that the guesses refute for mechanisms of the claimed kind.

    Claimed mechanisms imply more than one (epsilon, delta), namely a whole trade-off curve. Mahloujifar et al.,
    "Auditing f-Differential Privacy in One Run" (ICML 2025, arXiv:2410.22235) bound the number of right guesses by that
    curve. Here the noise multipliers of `mechanisms` are scaled down together as long as their curve is refuted; the
    result is the epsilon at `delta` for the smallest noise that is refuted.

    Args:
        canaries (`int`): Number of canaries.
        guesses (`int`): Number of guesses.
        correct (`int`): Number of right guesses.
        mechanisms (`Sequence[Mechanism]`): The claimed mechanisms, all of one run.
        delta (`float`): Delta of the returned epsilon.
        confidence (`float`, *optional*, defaults to 0.95): Probability with which a true claim stays above the bound.

    Returns:
        `float`: The bound, 0 if nothing is refuted.
    """

    def scaled(log_scale: float) -> list[Mechanism]:
        factor = math.exp(-log_scale)
        return [replace(each, noise_multiplier=factor * each.noise_multiplier) for each in mechanisms]

    def refuted(log_scale: float) -> bool:
        try:
            if compute_epsilon(scaled(log_scale), delta) > MAX_EPSILON:
                return False
        except InputError:  # the accountant fails with almost no noise
            return False
        epsilons, deltas = _privacy_profile(scaled(log_scale))
        return _is_refuted(epsilons, deltas, canaries, guesses, correct, 1 - confidence)

    if not refuted(-3.0):
        return 0.0
    return compute_epsilon(scaled(_largest_refuted(refuted, -3.0, 3.0)), delta)


def _is_refuted(
    epsilons: np.ndarray, deltas: np.ndarray, canaries: int, guesses: int, correct: int, probability: float
) -> bool:
    """Whether a mechanism with this privacy profile has `correct` right guesses with less than `probability`.

    This is the recursion of Mahloujifar et al. for guesses between two alternatives. `right` (`wrong`) is the
    probability that at least `number` guesses are right and a random canary is guessed right (wrong). The trade-off
    curve bounds one by the other; if their sum exceeds the share of canaries with a guess, the profile is refuted.
    """
    growth = np.exp(epsilons)

    def least_wrong(right: float) -> float:
        return max(((right - deltas) / growth).max(), (1 - deltas - growth * (1 - right)).max(), 0.0)

    right, wrong = probability * correct / canaries, probability * (guesses - correct) / canaries
    for number in range(correct - 1, -1, -1):
        if right + wrong > guesses / canaries:
            return True
        previous, wrong = wrong, max(wrong, least_wrong(right))
        right += number / (guesses - number) * (wrong - previous)
    return right + wrong > guesses / canaries


def _privacy_profile(mechanisms: Sequence[Mechanism]) -> tuple[np.ndarray, np.ndarray]:
    """Compute an upper bound of the privacy profile, as points (epsilon, delta) with epsilon >= 0."""
    epsilon_error, delta_error = 0.02, 1e-9
    accountant = PRVAccountant()
    accountant.history = [(each.noise_multiplier, each.sample_rate, each.steps) for each in mechanisms]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the rough epsilon only determines the grid
        # The public methods of the accountant answer for one delta at a time; this distribution gives all of them.
        distribution = accountant._get_dprv(eps_error=epsilon_error, delta_error=delta_error)
    all_losses, largest = distribution.domain.ts, 2 * MAX_EPSILON  # exponentials overflow for much larger losses
    kept = (all_losses >= 0) & (all_losses < largest)
    losses, mass = all_losses[kept], distribution.pmf[kept]
    mass_beyond = distribution.pmf[all_losses >= largest].sum()
    # delta(epsilon) is the expectation of 1 - exp(epsilon - loss) over the losses above epsilon.
    deltas = np.cumsum(mass[::-1])[::-1] - np.exp(losses) * np.cumsum((mass * np.exp(-losses))[::-1])[::-1]
    thinned = slice(None, None, max(len(losses) // 500, 1))
    return losses[thinned] + epsilon_error, deltas[thinned].clip(0, 1) + mass_beyond + delta_error


def _largest_refuted(refuted: Callable[[float], bool], low: float, high: float, tolerance: float = 0.005) -> float:
    """Find the largest refuted value between `low` and `high` by bisection; `low` if none is refuted."""
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
