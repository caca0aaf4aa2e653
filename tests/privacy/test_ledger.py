"""The ledger: what it counts, what it refuses, and its statement about a run."""

import contextlib
import json
from dataclasses import replace

import pytest
from dp_accounting import dp_event, pld

from diffusers_dp_curriculum import CentralImageDataset
from diffusers_dp_curriculum.errors import InputError, StorageError
from diffusers_dp_curriculum.privacy.accounting import Mechanism, compute_epsilon
from diffusers_dp_curriculum.privacy.counted_runs import CountedRun, all_mechanisms
from diffusers_dp_curriculum.privacy.ledger import PrivacyLedger
from diffusers_dp_curriculum.privacy.publishability import check_publishable
from diffusers_dp_curriculum.privacy.statement import PrivacyStatement, recompute_epsilon
from helpers import tiny_records


CENTRAL = Mechanism("central_images_mean", 5.0, 0.1, 5, 9.0)
DP_SGD = Mechanism("dp_sgd", 1.2, 0.17, 100, 1.0)
STEP = Mechanism("dp_sgd", 1.2, 0.17, 1, 1.0)


def test_ledger_merges_equal_neighbours_and_keeps_the_order():
    ledger = PrivacyLedger(1e-5)
    for mechanism in (CENTRAL, STEP, STEP, STEP):
        ledger.record(mechanism)
    assert ledger.mechanisms == [CENTRAL, Mechanism("dp_sgd", 1.2, 0.17, 3, 1.0)]
    assert ledger.epsilon() == compute_epsilon(ledger.mechanisms, 1e-5)


@pytest.mark.parametrize(
    ("delta", "accountant", "message"), [(0, "prv", "delta"), (1, "prv", "delta"), (0.1, "gdp", "accountant")]
)
def test_ledger_refuses_bad_input(delta, accountant, message):
    with pytest.raises(InputError, match=message):
        PrivacyLedger(delta, accountant)


def test_what_would_pass_the_target_is_refused_unrecorded():
    ledger = PrivacyLedger(1e-5, target_epsilon=8.0)
    ledger.record(CENTRAL)
    with pytest.raises(InputError, match=r"100 steps of dp_sgd would pass the target epsilon 8: plan at most \d+\."):
        ledger.check_affordable(DP_SGD)
    assert ledger.mechanisms == [CENTRAL]
    steps = ledger.affordable_steps(DP_SGD)
    assert 0 < steps < 100
    fits, too_many = (Mechanism("dp_sgd", 1.2, 0.17, count, 1.0) for count in (steps, steps + 1))
    assert ledger.epsilon([fits]) <= 8 < ledger.epsilon([too_many])
    ledger.check_affordable(fits)
    assert PrivacyLedger(1e-5).affordable_steps(DP_SGD) == 100  # without a target everything fits


def test_nothing_fits_where_the_target_is_spent():
    ledger = PrivacyLedger(1e-5, target_epsilon=1.0)
    ledger.record(DP_SGD)
    assert ledger.affordable_steps(STEP) == 0


def test_a_resumed_ledger_counts_what_was_seen_and_continues(tmp_path):
    ledger = PrivacyLedger(1e-6, "rdp", tmp_path / "journal.jsonl", target_epsilon=9.0)
    ledger.record(CENTRAL)
    ledger.record(STEP)
    checkpoint = ledger.position
    ledger._unseen = True  # as if the process were killed within `unseen()`
    ledger.record(STEP)
    ledger.mark_visible("sample grid")
    ledger.record(STEP)
    ledger._journal.close()
    resumed = PrivacyLedger.resume(tmp_path / "journal.jsonl", checkpoint)
    assert (resumed.delta, resumed.accountant, resumed.target_epsilon) == (1e-6, "rdp", 9.0)
    assert resumed.mechanisms == [CENTRAL, Mechanism("dp_sgd", 1.2, 0.17, 2, 1.0)]
    resumed.record(STEP)
    assert resumed.mechanisms[1].steps == 3
    assert len(resumed._journal.counted()) == 4


def test_a_journal_that_knows_less_than_the_checkpoint_is_refused(tmp_path):
    ledger = PrivacyLedger(1e-5, journal=tmp_path / "journal.jsonl")
    ledger.record(STEP)
    ledger.close()
    for _ in range(2):  # the refusal leaves no lock
        with pytest.raises(StorageError, match=r"ends before the checkpoint was made \(2 events of 3\)"):
            PrivacyLedger.resume(tmp_path / "journal.jsonl", 3)


def test_a_run_that_is_not_private_stays_so(tmp_path):
    ledger = PrivacyLedger(1e-5, journal=tmp_path / "journal.jsonl")
    ledger.mark_not_private("its noise is known")
    ledger.mark_not_private("something else")
    ledger.close()
    for either in (ledger, PrivacyLedger.resume(tmp_path / "journal.jsonl", 0)):
        statement = either.statement(100)
        assert statement.private is False
        assert statement.remarks == ("NOT PRIVATE: its noise is known.",)
        with pytest.raises(InputError, match="not private and may not be published.*its noise is known"):
            check_publishable(statement)


def test_a_loose_bound_is_said_to_be_one():
    ledger = PrivacyLedger(1e-5, "rdp")
    ledger.record(Mechanism("dp_sgd", 50.0, 1e-3, 1, 1.0))
    assert "larger than need be" in ledger.statement(1000).remarks[0]


@pytest.fixture
def statement():
    ledger = PrivacyLedger(1e-5)
    ledger.record(CENTRAL)
    ledger.record(DP_SGD)
    return json.loads(ledger.statement(dataset_size=1500).to_json())


def test_a_stranger_recomputes_epsilon_from_the_statement(statement):
    assert statement["adjacency"] == "zero_out_one_record"
    assert (statement["private"], statement["remarks"]) == (True, [])
    accountant = pld.PLDAccountant()
    for entry in statement["mechanisms"]:
        gaussian = dp_event.GaussianDpEvent(entry["noise_multiplier"])
        accountant.compose(dp_event.PoissonSampledDpEvent(entry["sample_rate"], gaussian), entry["steps"])
    assert statement["epsilon"] == pytest.approx(accountant.get_epsilon(statement["delta"]), rel=0.01)
    assert recompute_epsilon(statement) == statement["epsilon"]


def test_previous_runs_are_part_of_what_a_ledger_spends_and_of_none_of_its_own_mechanisms(tmp_path):
    """The DP-SGD of a previous run has the same name, and may have the same settings."""
    previous = [CountedRun("one", {"a": 65}, [CENTRAL, replace(DP_SGD, steps=60)]), CountedRun(None, {}, [CENTRAL])]
    target = compute_epsilon([DP_SGD], 1e-5, "rdp") + 0.5
    ledger = PrivacyLedger(1e-5, "rdp", tmp_path / "journal.jsonl", target, previous)
    alone = PrivacyLedger(1e-5, "rdp", target_epsilon=target)
    assert ledger.epsilon() == compute_epsilon(all_mechanisms(previous), 1e-5, "rdp")
    assert 0 < ledger.affordable_steps(DP_SGD) < alone.affordable_steps(DP_SGD) == 100
    alone.check_affordable(DP_SGD)
    with pytest.raises(InputError, match=r"would pass the target epsilon .*: plan at most \d+\."):
        ledger.check_affordable(DP_SGD)
    ledger.record(STEP)
    ledger.close()
    resumed = PrivacyLedger.resume(tmp_path / "journal.jsonl", ledger.position)  # from the journal alone
    for either in (ledger, ledger.in_memory(), resumed):
        assert either.mechanisms == [STEP]
        assert either.prior_runs == previous
        assert either.epsilon() == compute_epsilon([*all_mechanisms(previous), STEP], 1e-5, "rdp")
    for either in (ledger, resumed):
        statement = PrivacyStatement.from_dict(json.loads(either.statement(100).to_json()))
        assert list(statement.runs[1:]) == previous
        assert statement.runs[0].mechanisms == [STEP]
        assert recompute_epsilon(statement) == statement.epsilon == either.epsilon()
        assert "for this run and the 2 previous runs that it counts: further runs" in statement.scope


def test_a_statement_says_that_it_is_for_one_run_alone(statement):
    assert statement["scope"] == "The figure is for this run alone: further runs on the same records add up."


def test_ledgers_without_a_journal_are_runs_of_their_own_too():
    ledgers = [PrivacyLedger(1e-5) for _ in range(2)]
    for ledger in ledgers:
        ledger.record(STEP)
    one, other = (ledger.statement(10).runs[0] for ledger in ledgers)
    assert one.id != other.id
    ledgers[0].record(STEP)
    later = ledgers[0].statement(10).runs[0]
    assert later.counts_all_of(one)
    assert not one.counts_all_of(later)


WAYS_OUT = [None, KeyboardInterrupt, RuntimeError, SystemExit, GeneratorExit]


@pytest.mark.parametrize("error", WAYS_OUT)
def test_however_an_unseen_context_ends_its_releases_count_for_good(tmp_path, error):
    ledger = PrivacyLedger(1e-5, journal=tmp_path / "journal.jsonl")
    with pytest.raises(error) if error else contextlib.nullcontext(), ledger.unseen():
        ledger.record(STEP)
        if error:
            raise error
    ledger.close()
    assert PrivacyLedger.resume(tmp_path / "journal.jsonl", 0).mechanisms == [STEP]


def test_what_is_recorded_outside_of_an_unseen_context_counts_for_good(tmp_path):
    """A library call returns its result to the caller, who may look at it before the process is killed."""
    ledger = PrivacyLedger(1e-5, journal=tmp_path / "journal.jsonl")
    CentralImageDataset.from_dataset(tiny_records(), 3, ledger=ledger)
    ledger.close()  # as the operating system does when it kills the process
    assert PrivacyLedger.resume(tmp_path / "journal.jsonl", 0).mechanisms == ledger.mechanisms


def test_ctrl_c_pressed_again_and_again_does_not_keep_releases_from_counting(tmp_path, monkeypatch):
    ledger = PrivacyLedger(1e-5, journal=tmp_path / "journal.jsonl")
    append, presses = ledger._journal.append, [KeyboardInterrupt, KeyboardInterrupt]

    def interrupted(*event):
        if presses:
            raise presses.pop()
        append(*event)

    def work():
        with ledger.unseen():
            ledger.record(STEP)
            monkeypatch.setattr(ledger._journal, "append", interrupted)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not presses
    ledger.close()
    assert PrivacyLedger.resume(tmp_path / "journal.jsonl", 0).mechanisms == [STEP]


def test_a_mark_that_was_interrupted_is_made_when_the_journal_is_closed(tmp_path, monkeypatch):
    ledger = PrivacyLedger(1e-5, journal=tmp_path / "journal.jsonl")

    def interrupted(what):
        raise KeyboardInterrupt

    def work():
        with ledger.unseen():
            ledger.record(STEP)
            monkeypatch.setattr(ledger, "_mark_despite_interrupts", interrupted)

    with pytest.raises(KeyboardInterrupt):
        work()
    monkeypatch.undo()
    ledger.close()
    assert PrivacyLedger.resume(tmp_path / "journal.jsonl", 0).mechanisms == [STEP]
