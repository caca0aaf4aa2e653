"""The bounds that right guesses prove refute false claims, and do not refute true ones."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event, pld

from diffusers_dp_curriculum.auditing import bounds
from diffusers_dp_curriculum.auditing.bounds import one_run_bound, trade_off_bound
from diffusers_dp_curriculum.privacy.accounting import Mechanism, compute_epsilon


GAUSSIAN = Mechanism("dp_sgd", 1.0, 1.0, 1, 1.0)
SUBSAMPLED = Mechanism("dp_sgd", 1.5, 0.5, 20, 1.0)


def right_guesses(scores, present, guesses):
    order = np.argsort(scores)
    return int(present[order[-guesses // 2 :]].sum() + (~present[order[: guesses // 2]]).sum())


def attacked_gaussian(generator, canaries, sigma, guesses):
    """The number of right guesses about canaries that each add 1, or 0, to a noisy number of their own."""
    present = generator.random(canaries) < 0.5
    return right_guesses(present + sigma * generator.standard_normal(canaries), present, guesses)


def test_only_right_guesses_have_the_bound_of_pure_privacy_in_closed_form():
    """Without delta, r guesses are all right with probability p^r; the bound is where this is 5 %."""
    success = 0.05 ** (1 / 200)
    assert one_run_bound(1000, 200, 200, delta=0.0) == pytest.approx(math.log(success / (1 - success)), abs=0.01)


def test_coin_flips_prove_nothing_and_more_right_guesses_prove_more():
    bounds = [one_run_bound(1000, 500, correct, delta=1e-5) for correct in (240, 300, 400, 500)]
    assert bounds[0] == 0
    assert bounds == sorted(bounds)
    assert bounds[-1] > 4
    assert one_run_bound(1000, 500, 400, delta=1e-3) < bounds[2]


def test_a_claim_of_pure_privacy_survives_as_often_as_the_confidence_says():
    """The mechanism is randomized response, for which the bound is exact."""
    generator = np.random.default_rng(1)
    success = 1 / (1 + math.exp(-1.5))
    correct = generator.binomial(1000, success, size=400)
    bounds = {number: one_run_bound(1000, 1000, number, delta=0.0) for number in set(correct.tolist())}
    bounds = np.array([bounds[number] for number in correct.tolist()])
    assert 0.01 < (bounds > 1.5).mean() < 0.1
    assert np.median(bounds) > 1.2


@pytest.mark.parametrize("mechanism", [GAUSSIAN, SUBSAMPLED], ids=["Gaussian", "subsampled"])
def test_the_privacy_profile_is_that_of_an_independent_implementation(mechanism):
    epsilons, deltas = bounds._privacy_profile([mechanism])
    accountant = pld.PLDAccountant()
    event = dp_event.GaussianDpEvent(mechanism.noise_multiplier)
    accountant.compose(dp_event.PoissonSampledDpEvent(mechanism.sample_rate, event), mechanism.steps)
    for number in range(0, len(epsilons) // 2, len(epsilons) // 20):
        independent = accountant.get_delta(epsilons[number])
        # `epsilons` are 0.02 too large, so that delta is a little above the exact one, and never below.
        assert independent * 0.999 - 1e-9 <= deltas[number] <= 1.1 * independent + 1e-7


def test_a_true_claim_survives_and_half_its_noise_does_not():
    generator = np.random.default_rng(2)
    profile = bounds._privacy_profile([GAUSSIAN])

    def refuted(sigma):
        correct = attacked_gaussian(generator, 2000, sigma, 1000)
        return bounds._is_refuted(*profile, 2000, 1000, correct, 0.05)

    assert sum(refuted(1.0) for _ in range(100)) <= 5
    assert sum(refuted(0.5) for _ in range(20)) == 20


def test_the_bound_comes_near_the_truth_and_grows_as_the_noise_falls():
    generator = np.random.default_rng(3)
    true = compute_epsilon([GAUSSIAN], 1e-5)
    correct = attacked_gaussian(generator, 4000, 1.0, 1000)
    bound = trade_off_bound(4000, 1000, correct, [GAUSSIAN], 1e-5)
    assert one_run_bound(4000, 1000, correct, 1e-5) < bound < true
    assert bound > 0.5 * true
    half = trade_off_bound(4000, 1000, attacked_gaussian(generator, 4000, 0.5, 1000), [GAUSSIAN], 1e-5)
    assert true < half < compute_epsilon([Mechanism("dp_sgd", 0.5, 1.0, 1, 1.0)], 1e-5)


def test_guessing_by_chance_proves_nothing_and_certainty_is_bounded():
    assert trade_off_bound(4000, 1000, 500, [SUBSAMPLED], 1e-5) == 0
    assert 8 < trade_off_bound(4000, 1000, 1000, [SUBSAMPLED], 1e-5) <= bounds.MAX_EPSILON
