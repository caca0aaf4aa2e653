"""How much epsilon right guesses prove: statistics alone, without a model or data in sight.

The game is that of Steinke et al. 2023, "Privacy Auditing with One (1) Training Run" (arXiv:2305.08846): each canary
was present with probability 1/2, and of those that were guessed on (present or absent) a number of guesses was right.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from opacus.accountants import PRVAccountant
from scipy import stats

from ..errors import InputError
from ..privacy.accounting import Mechanism, compute_epsilon


# The largest epsilon that is looked for: far above any claim, and still quick to work out.
MOST = 50.0


def one_run_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that the guesses refute, for any (epsilon, delta)-DP mechanism whatsoever.

    Steinke et al. 2023 (arXiv:2305.08846), Theorem 5.2: of `guesses` guesses about `canaries` canaries, at least
    `correct` are right with at most the probability of a binomial with success probability e^epsilon / (1 + e^epsilon),
    plus a term for delta.

    Args:
        canaries (`int`): Number of canaries.
        guesses (`int`): Number of guesses.
        correct (`int`): Number of right guesses.
        delta (`float`): Delta.
        confidence (`float`, *optional*, defaults to 0.95): Probability with which a true claim stays above the bound.
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
    canaries: int, guesses: int, correct: int, mechanism: Mechanism, delta: float, confidence: float = 0.95
) -> float:
    """The largest epsilon, 50 at most, that the guesses refute for mechanisms of the claimed kind.

    A claim says more than one (epsilon, delta): the mechanism's whole trade-off curve follows from it. Mahloujifar et
    al., "Auditing f-Differential Privacy in One Run" (ICML 2025, arXiv:2410.22235) bound the right guesses by that
    curve. Here it is that of `mechanism` with its noise multiplier scaled; the answer is the epsilon, at `delta`, of
    the least noise that is refuted.

    Args:
        canaries (`int`): Number of canaries.
        guesses (`int`): Number of guesses.
        correct (`int`): Number of right guesses.
        mechanism (`Mechanism`): The claimed mechanism.
        delta (`float`): Delta of the answer.
        confidence (`float`, *optional*, defaults to 0.95): Probability with which a true claim stays above the bound.
    """

    def scaled(log_scale: float) -> Mechanism:
        return replace(mechanism, noise_multiplier=mechanism.noise_multiplier * math.exp(-log_scale))

    def refuted(log_scale: float) -> bool:
        try:
            if compute_epsilon([scaled(log_scale)], delta) > MOST:
                return False
        except InputError:  # next to no noise is left, and the accountant gives up
            return False
        epsilons, deltas = _privacy_profile(scaled(log_scale))
        return _too_many(epsilons, deltas, canaries, guesses, correct, 1 - confidence)

    if not refuted(-3.0):
        return 0.0
    return compute_epsilon([scaled(_largest_refuted(refuted, -3.0, 3.0))], delta)


def _too_many(
    epsilons: np.ndarray, deltas: np.ndarray, canaries: int, guesses: int, correct: int, probability: float
) -> bool:
    """Whether a mechanism of this privacy profile yields `correct` right guesses with less than `probability`.

    The recursion of Mahloujifar et al. for guesses between two alternatives: `right` and `wrong` are the chances that
    a canary, drawn at random, is guessed right (wrong) and at least so many guesses are right; the trade-off curve
    limits one by the other, and if both get too large the assumption was false.
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


def _privacy_profile(mechanism: Mechanism) -> tuple[np.ndarray, np.ndarray]:
    """Points (epsilon, delta) with epsilon >= 0 at which the mechanism is private: an upper bound on the profile."""
    epsilon_error, delta_error = 0.02, 1e-9
    accountant = PRVAccountant()
    accountant.history = [(mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps)]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of the rough epsilon that only chooses the grid
        # The accountant's public face answers for one delta at a time; this is the distribution that it asks.
        distribution = accountant._get_dprv(eps_error=epsilon_error, delta_error=delta_error)
    kept = (distribution.domain.ts >= 0) & (distribution.domain.ts < 2 * MOST)  # exponentials overflow far beyond
    losses, mass = distribution.domain.ts[kept], distribution.pmf[kept]
    beyond = distribution.pmf[distribution.domain.ts >= 2 * MOST].sum()
    # delta(epsilon) is the expectation of 1 - exp(epsilon - loss) over the losses above epsilon.
    deltas = np.cumsum(mass[::-1])[::-1] - np.exp(losses) * np.cumsum((mass * np.exp(-losses))[::-1])[::-1]
    every = slice(None, None, max(len(losses) // 500, 1))
    return losses[every] + epsilon_error, deltas[every].clip(0, 1) + beyond + delta_error


def _largest_refuted(refuted: Callable[[float], bool], low: float, high: float, tolerance: float = 0.005) -> float:
    """Bisect between `low`, the answer if nothing is refuted, and `high`."""
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
