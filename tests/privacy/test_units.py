"""The unit of privacy in ledgers, journals and statements."""

import json

import pytest

from diffusers_dp_curriculum import Mechanism, MechanismRandomness, PrivacyLedger, PrivacyStatement, recompute_epsilon
from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.privacy.composition import compose, find_statements, read_prior_runs
from helpers import write_run


MECHANISM = Mechanism("a_noisy_sum", 8.0, 0.1, 3, 1.0)


def test_a_statement_says_its_unit():
    for unit in ("record", "user"):
        ledger = PrivacyLedger(1e-5, unit=unit)
        ledger.record(MECHANISM)
        content = json.loads(ledger.statement(60).to_json())
        assert (content["unit"], content["adjacency"]) == (unit, f"zero_out_one_{unit}")
        assert content["public_assumptions"][0] == f"the number of {unit}s N"
        assert recompute_epsilon(content) == content["epsilon"] == ledger.epsilon()
        assert PrivacyStatement.from_dict(content).unit == unit


def test_a_statement_of_an_older_version_is_about_records():
    ledger = PrivacyLedger(1e-5)
    content = json.loads(ledger.statement(60).to_json())
    del content["unit"]
    assert PrivacyStatement.from_dict(content).unit == "record"


@pytest.mark.parametrize(
    ("unit", "adjacency"),
    [("user", "zero_out_one_record"), ("record", "zero_out_one_user"), ("user", "add_or_remove_one_record")],
)
def test_an_adjacency_that_is_not_that_of_the_unit_is_refused(unit, adjacency):
    content = {**PrivacyLedger(1e-5).statement(60).to_dict(), "unit": unit, "adjacency": adjacency}
    with pytest.raises(InputError, match=f"for the adjacency {adjacency}, which this version does not know"):
        recompute_epsilon(content)


@pytest.mark.parametrize("unit", ["hospital", None, 3])
def test_a_unit_that_does_not_exist_is_refused(unit):
    content = {**PrivacyLedger(1e-5).statement(60).to_dict(), "unit": unit}
    with pytest.raises(InputError, match="This is not the content of a privacy.json"):
        PrivacyStatement.from_dict(content)


def test_a_resumed_ledger_keeps_its_unit(tmp_path):
    ledger = PrivacyLedger(1e-5, journal=tmp_path / "journal.jsonl", unit="user")
    ledger.record(MECHANISM)
    ledger.close()
    resumed = PrivacyLedger.resume(tmp_path / "journal.jsonl", ledger.position)
    assert resumed.unit == resumed.in_memory().unit == resumed.statement(60).unit == "user"
    with pytest.raises(
        InputError, match="a_noisy_sum bounds what one record contributes, and the ledger counts by users"
    ):
        resumed.begin(MECHANISM, MechanismRandomness())


@pytest.mark.parametrize("saved", [True, False])
def test_runs_with_different_units_are_not_added_up(tmp_path, saved):
    for unit in ("record", "user"):
        write_run(tmp_path / unit, MECHANISM, saved=saved, unit=unit)
    found = [*find_statements(str(tmp_path / "record")), *find_statements(str(tmp_path / "user"))]
    assert [statement.statement.unit for statement in found] == ["record", "user"]
    with pytest.raises(InputError, match="user protects each user, and what it is added to protects each record"):
        compose(found)
    with pytest.raises(InputError, match="record protects each record, and what it is added to protects each user"):
        read_prior_runs([str(tmp_path / "record")], "user")
    assert compose(found[1:]).statement.unit == "user"
    assert len(read_prior_runs([str(tmp_path / "user")], "user")) == 1
