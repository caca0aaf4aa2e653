"""The ledger's numbers against an independent implementation, and the order in which things become durable."""

import json
import os

import pytest
from dp_accounting import dp_event, pld, rdp

from diffusers_dp_curriculum.accounting import (
    RDP_ORDERS,
    Mechanism,
    PrivacyLedger,
    calibrate_noise_multiplier,
    compute_epsilon,
)
from diffusers_dp_curriculum.errors import InputError


CENTRAL = Mechanism("central_images_mean", 5.0, 0.1, 5, 9.0)
COMPOSITIONS = [
    ([CENTRAL], 1e-5),
    ([Mechanism("dp_sgd", 1.2, 0.17, 100, 1.0)], 1e-5),
    ([CENTRAL, Mechanism("dp_sgd", 1.2, 0.17, 100, 1.0)], 1e-5),
    ([CENTRAL, Mechanism("dp_sgd", 9.0, 4096 / 60_000, 2197, 1.0)], 1e-5),
    ([Mechanism("central_images_mean", 5.0, 1.0, 5, 9.0), Mechanism("dp_sgd", 4.0, 1.0, 60, 1.0)], 1e-5),
    ([Mechanism("dp_sgd", 1.0, 1e-3, 20_000, 1.0)], 1e-6),
    ([Mechanism("dp_sgd", 50.0, 0.05, 2000, 1.0)], 1e-5),
]


def event(mechanism):
    gaussian = dp_event.GaussianDpEvent(mechanism.noise_multiplier)
    return dp_event.PoissonSampledDpEvent(mechanism.sample_rate, gaussian) if mechanism.sample_rate < 1 else gaussian


def independent_epsilon(accountant, mechanisms, delta):
    for mechanism in mechanisms:
        accountant.compose(event(mechanism), mechanism.steps)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(("mechanisms", "delta"), COMPOSITIONS)
def test_prv_is_a_tight_upper_bound(mechanisms, delta):
    upper = independent_epsilon(pld.PLDAccountant(value_discretization_interval=1e-4), mechanisms, delta)
    epsilon = compute_epsilon(mechanisms, delta, "prv")
    assert upper * 0.99 <= epsilon <= upper * 1.012


@pytest.mark.parametrize(("mechanisms", "delta"), COMPOSITIONS)
def test_rdp_agrees(mechanisms, delta):
    expected = independent_epsilon(rdp.RdpAccountant(RDP_ORDERS), mechanisms, delta)
    assert compute_epsilon(mechanisms, delta, "rdp") == pytest.approx(expected, rel=0.005)


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
    with pytest.raises(InputError, match="central images alone cost epsilon .* raise central_noise_multiplier"):
        calibrate_noise_multiplier(1.0, 1e-5, Mechanism("dp_sgd", 1.0, 0.1, 10, 1.0), [loud])


@pytest.mark.parametrize(
    ("values", "message"),
    [((0, 0.1, 1, 1), "noise multiplier"), ((1, 1.5, 1, 1), "sample rate"), ((1, 0.1, 0, 1), "steps")],
)
def test_mechanism_refuses_values_out_of_range(values, message):
    with pytest.raises(InputError, match=message):
        Mechanism("dp_sgd", *values)


def test_accountant_that_gives_up_says_so():
    with pytest.raises(InputError, match="cannot bound this composition|no finite epsilon"):
        compute_epsilon([Mechanism("dp_sgd", 1e-3, 0.5, 10_000, 1.0)], 1e-5, "prv")


def test_ledger_merges_equal_neighbours_and_keeps_the_order():
    ledger = PrivacyLedger(1e-5)
    step = Mechanism("dp_sgd", 1.0, 0.1, 1, 1.0)
    for mechanism in (CENTRAL, step, step, step):
        ledger.record(mechanism)
    assert ledger.mechanisms == [CENTRAL, Mechanism("dp_sgd", 1.0, 0.1, 3, 1.0)]
    assert ledger.epsilon() == compute_epsilon(ledger.mechanisms, 1e-5)


def test_journal_has_the_entry_as_soon_as_it_is_recorded(tmp_path, monkeypatch):
    ledger = PrivacyLedger(1e-5, journal=tmp_path / "journal.jsonl")
    on_disk = []
    monkeypatch.setattr(os, "fsync", lambda _: on_disk.append((tmp_path / "journal.jsonl").read_text()))
    ledger.record(CENTRAL)
    assert len(on_disk) == 1
    assert json.loads(on_disk[0])["name"] == "central_images_mean"
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()  # the ledger still has the file open
    assert [Mechanism(**json.loads(line)) for line in lines] == [CENTRAL]


def test_journal_of_another_run_is_never_overwritten(tmp_path):
    (tmp_path / "journal.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="journal of another run"):
        PrivacyLedger(1e-5, journal=tmp_path / "journal.jsonl")
    assert (tmp_path / "journal.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("delta", "accountant", "message"), [(0, "prv", "delta"), (1, "prv", "delta"), (0.1, "gdp", "accountant")]
)
def test_ledger_refuses_bad_input(delta, accountant, message):
    with pytest.raises(InputError, match=message):
        PrivacyLedger(delta, accountant)


def test_a_stranger_recomputes_epsilon_from_the_statement():
    ledger = PrivacyLedger(1e-5)
    ledger.record(CENTRAL)
    ledger.record(Mechanism("dp_sgd", 1.2, 0.17, 100, 1.0))
    statement = json.loads(json.dumps(ledger.statement(dataset_size=1500)))
    assert statement["adjacency"] == "add_or_remove_one_record"
    assert statement["private"] is True
    accountant = pld.PLDAccountant()
    for entry in statement["mechanisms"]:
        gaussian = dp_event.GaussianDpEvent(entry["noise_multiplier"])
        accountant.compose(dp_event.PoissonSampledDpEvent(entry["sample_rate"], gaussian), entry["steps"])
    assert statement["epsilon"] == pytest.approx(accountant.get_epsilon(statement["delta"]), rel=0.01)
