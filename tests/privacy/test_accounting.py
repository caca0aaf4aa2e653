"""Epsilon against an independent implementation, `dp-accounting`, over the settings that a run can have."""

import functools
import itertools
import warnings

import numpy as np
import pytest
from dp_accounting import dp_event, rdp
from dp_accounting.pld import privacy_loss_distribution
from opacus.accountants.analysis.rdp import compute_rdp
from scipy import integrate, optimize, stats

from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.privacy.accounting import (
    RDP_ORDERS,
    LooseEpsilonWarning,
    Mechanism,
    calibrate_noise_multiplier,
    compute_epsilon,
)


CENTRAL = Mechanism("central_images_mean", 5.0, 0.1, 5, 9.0)
# An epsilon above this protects nobody, and dp-accounting takes long to compute it.
MEANINGLESS = 32

# 72 settings: noise, sample rate, steps and delta over their ranges, every second one after central queries.
GRID = [
    ([CENTRAL] * (number % 2) + [Mechanism("dp_sgd", *setting, 1.0)], delta)
    for number, (setting, delta) in enumerate(
        zip(
            itertools.product((0.4, 0.6, 0.9, 1.5, 5.0, 50.0), (1e-4, 1e-2, 0.2, 1.0), (1, 100, 20_000)),
            itertools.cycle((1e-4, 1e-5, 1e-6, 1e-7, 1e-9)),
            strict=False,
        )
    )
]
# Settings of real runs.
GRID += [
    ([CENTRAL], 1e-5),
    ([Mechanism("dp_sgd", 1.2, 0.17, 100, 1.0)], 1e-5),
    ([CENTRAL, Mechanism("dp_sgd", 9.0, 4096 / 60_000, 2197, 1.0)], 1e-5),
    ([Mechanism("central_images_mean", 5.0, 1.0, 5, 9.0), Mechanism("dp_sgd", 4.0, 1.0, 60, 1.0)], 1e-5),
    ([CENTRAL, Mechanism("dp_sgd", 1.2, 0.17, 50, 1.0), Mechanism("dp_sgd", 2.0, 0.08, 80, 1.0)], 1e-6),
]


def as_text(setting):
    mechanisms, delta = setting
    return "+".join(f"{m.noise_multiplier:g},{m.sample_rate:.2g},{m.steps}" for m in mechanisms) + f" at {delta:g}"


def event(mechanism):
    gaussian = dp_event.GaussianDpEvent(mechanism.noise_multiplier)
    return dp_event.PoissonSampledDpEvent(mechanism.sample_rate, gaussian) if mechanism.sample_rate < 1 else gaussian


def independent_rdp_epsilon(mechanisms, delta, orders):
    accountant = rdp.RdpAccountant(orders)
    for mechanism in mechanisms:
        accountant.compose(event(mechanism), mechanism.steps)
    return accountant.get_epsilon(delta)


def pld_epsilon(mechanisms, delta, pessimistic):
    """The upper (pessimistic) or lower bound of dp-accounting's privacy loss distributions."""
    parts = [
        privacy_loss_distribution.from_gaussian_mechanism(
            mechanism.noise_multiplier,
            sampling_prob=mechanism.sample_rate,
            pessimistic_estimate=pessimistic,
            value_discretization_interval=1e-4,
            use_connect_dots=pessimistic,
        ).self_compose(mechanism.steps)
        for mechanism in mechanisms
    ]
    return functools.reduce(lambda one, other: one.compose(other), parts).get_epsilon_for_delta(delta)


def each_fifth_at_once():
    """All settings; four in five are marked as slow, as dp-accounting takes seconds to minutes for each."""
    for number, setting in enumerate(GRID):
        last = setting[0][-1]
        takes_minutes = last.sample_rate < 1e-3 and last.steps > 10_000
        at_once = number >= 72 or (number % 5 == 0 and not takes_minutes)
        yield pytest.param(setting, id=as_text(setting), marks=[] if at_once else pytest.mark.slow)


@pytest.mark.parametrize("setting", list(each_fifth_at_once()))
def test_prv_lies_between_the_bounds_of_privacy_loss_distributions(setting):
    mechanisms, delta = setting
    try:
        epsilon = compute_epsilon(mechanisms, delta, "prv")
    except InputError:
        # Only an epsilon that protects nothing is refused.
        assert independent_rdp_epsilon(mechanisms, delta, RDP_ORDERS) > 1000
        return
    if epsilon > MEANINGLESS:
        assert epsilon <= 1.01 * compute_epsilon(mechanisms, delta, "rdp")
        return
    lower, upper = (pld_epsilon(mechanisms, delta, pessimistic) for pessimistic in (False, True))
    assert 0.99 * lower <= epsilon <= 1.01 * upper + 2e-4  # for an epsilon near 0 the grid is no finer than 2e-4
    if upper > 0.5:  # after many steps the lower bound is loose, and the upper bound tight
        assert epsilon >= 0.99 * upper


@pytest.mark.parametrize("setting", GRID, ids=as_text)
def test_rdp_agrees_with_an_independent_implementation(setting):
    mechanisms, delta = setting
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        epsilon = compute_epsilon(mechanisms, delta, "rdp")
    independent = independent_rdp_epsilon(mechanisms, delta, RDP_ORDERS)
    assert epsilon <= 1.005 * independent + 2e-3
    if epsilon > MEANINGLESS:  # there the best order is below 2, where dp-accounting is inexact
        return
    assert epsilon >= 0.995 * independent - 2e-3
    if not caught:  # there was no warning of a loose bound, so that other orders give no better one
        assert epsilon <= 1.005 * independent_rdp_epsilon(mechanisms, delta, None)


@pytest.mark.parametrize("order", [1.01, 1.1, 1.5, 2.5, 6.3])
@pytest.mark.parametrize(("sigma", "rate"), [(0.6, 0.01), (0.9, 0.2), (5.0, 0.2), (1.5, 1e-3)])
def test_rdp_of_fractional_orders_is_the_integral_that_defines_it(sigma, rate, order):
    """Mironov et al. 2019, eq. 3, for the mixture with a present record against the noise alone."""

    def integrand(x):
        absent = stats.norm.logpdf(x, 0, sigma)
        present = np.logaddexp(np.log1p(-rate) + absent, np.log(rate) + stats.norm.logpdf(x, 1, sigma))
        return np.exp(order * present + (1 - order) * absent)

    expected = np.log(integrate.quad(integrand, -12 * sigma, 12 * sigma + order, epsabs=1e-13, limit=500)[0]) / (
        order - 1
    )
    (rdp_of_order,) = compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=[order])
    assert rdp_of_order == pytest.approx(expected, rel=1e-4, abs=1e-10)


@pytest.mark.parametrize(("sigma", "steps"), [(0.5, 1), (1, 1), (2, 1), (5, 1), (2, 10), (5, 100), (20, 400)])
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_prv_answers_with_its_upper_bound(sigma, steps, delta):
    """The answer is never below the exact epsilon, where that is known (Balle and Wang 2018, arXiv:1805.06530, thm. 8).

    The accountant's estimate is within some millionths of the exact epsilon, and its upper bound lies above that.
    """
    one = sigma / steps**0.5  # the noise of a single Gaussian mechanism that is equivalent to all steps

    def delta_of(epsilon):
        upper, lower = stats.norm.cdf(1 / (2 * one) - epsilon * one), stats.norm.cdf(-1 / (2 * one) - epsilon * one)
        return upper - np.exp(epsilon) * lower

    exact = optimize.brentq(lambda epsilon: delta_of(epsilon) - delta, 0, 100, xtol=1e-12)
    epsilon = compute_epsilon([Mechanism("dp_sgd", sigma, 1.0, steps, 1.0)], delta)
    assert 1.001 * exact < epsilon < 1.006 * exact


def test_the_grid_covers_what_runs_can_be():
    assert len(GRID) >= 60
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LooseEpsilonWarning)
        meaningful = [setting for setting in GRID if compute_epsilon(*setting, "rdp") <= MEANINGLESS]
    assert len(meaningful) >= 50


def test_a_loose_bound_says_so():
    with pytest.warns(LooseEpsilonWarning, match="valid but larger than need be"):
        compute_epsilon([Mechanism("dp_sgd", 50.0, 1e-3, 1, 1.0)], 1e-5, "rdp")


def test_equal_spending_has_one_epsilon_however_it_was_written_down():
    parts = [Mechanism("dp_sgd", 1.1, 0.1, steps, 1.0) for steps in (37, 63)]
    whole = [Mechanism("dp_sgd", 1.1, 0.1, 100, 1.0)]
    for accountant in ("prv", "rdp"):
        expected = compute_epsilon([CENTRAL, *whole], 1e-5, accountant)
        assert compute_epsilon([parts[0], CENTRAL, parts[1]], 1e-5, accountant) == expected


def test_nothing_executed_costs_nothing():
    assert compute_epsilon([], 1e-5) == 0


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize("target", [1.0, 10.0])
def test_calibration_meets_the_target_from_below(target, accountant):
    dp_sgd = Mechanism("dp_sgd", 1.0, 0.05, 300, 1.0)
    sigma = calibrate_noise_multiplier(target, 1e-5, dp_sgd, [CENTRAL], accountant)
    epsilon = compute_epsilon([CENTRAL, Mechanism("dp_sgd", sigma, 0.05, 300, 1.0)], 1e-5, accountant)
    assert 0.99 * target <= epsilon <= target


def test_calibration_refuses_a_prior_that_costs_too_much():
    loud = Mechanism("central_images_mean", 0.5, 1.0, 5, 1.0)
    with pytest.raises(InputError, match="What comes before dp_sgd costs epsilon .* raise the noise mult"):
        calibrate_noise_multiplier(1.0, 1e-5, Mechanism("dp_sgd", 1.0, 0.1, 10, 1.0), [loud])


@pytest.mark.parametrize(
    ("values", "message"),
    [((0, 0.1, 1, 1), "noise multiplier"), ((1, 1.5, 1, 1), "sample rate"), ((1, 0.1, 0, 1), "steps")],
)
def test_mechanism_refuses_values_out_of_range(values, message):
    with pytest.raises(InputError, match=message):
        Mechanism("dp_sgd", *values)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "mechanism",
    [
        Mechanism("dp_sgd", 1e-3, 0.5, 10_000, 1.0),
        Mechanism("dp_sgd", 0.4, 0.2, 20_000, 1.0),
        Mechanism("dp_sgd", 1e6, 1e-3, 1_000_000_000, 1.0),
    ],
    ids=["hardly any noise", "enormous epsilon", "a billion steps"],
)
def test_what_an_accountant_cannot_bound_is_refused_before_it_exhausts_memory(mechanism):
    with pytest.raises(InputError, match="cannot bound this composition|no finite epsilon"):
        compute_epsilon([mechanism], 1e-5, "prv")


def test_prv_is_refused_where_its_rounding_would_reach_delta():
    """At delta 1e-12 PRV would give 0.839 for these steps, where 0.91 is true."""
    mechanism = Mechanism("dp_sgd", 4.0, 1e-3, 300_000, 1.0)
    with pytest.raises(InputError, match="rounding errors may reach 7e-11.* try `accountant` rdp"):
        compute_epsilon([mechanism], 1e-12, "prv")
    assert compute_epsilon([mechanism], 1e-12, "rdp") == pytest.approx(0.949, abs=0.002)
    assert compute_epsilon([mechanism], 1e-9, "prv") < compute_epsilon([mechanism], 1e-9, "rdp")


@pytest.mark.parametrize(("delta", "accountant", "message"), [(1e-13, "prv", "`delta` is 1e-13"), (1e-5, "gdp", "gdp")])
def test_bad_input_is_refused(delta, accountant, message):
    with pytest.raises(InputError, match=message):
        compute_epsilon([CENTRAL], delta, accountant)
