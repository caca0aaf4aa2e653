"""Whether a privacy.json may be published, and the command that recomputes its epsilon."""

import contextlib
import json
import shutil
from dataclasses import FrozenInstanceError, replace

import pytest

from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.privacy.accounting import Mechanism, compute_epsilon
from diffusers_dp_curriculum.privacy.counted_runs import CountedRun
from diffusers_dp_curriculum.privacy.journal import read_released
from diffusers_dp_curriculum.privacy.ledger import PrivacyLedger
from diffusers_dp_curriculum.privacy.publishability import (
    check_journal,
    check_publishable,
    check_statement,
    understates,
)
from diffusers_dp_curriculum.privacy.statement import PrivacyStatement, recompute_epsilon
from helpers import resume_run, write_privacy_json, write_run


def test_epsilon_is_recomputed_from_what_a_statement_says_was_done():
    dp_sgd = {"name": "dp_sgd", "noise_multiplier": 1.2, "sample_rate": 0.17, "steps": 100, "sensitivity": 1.0}
    statement = {"epsilon": 0.1, "delta": 1e-5, "accountant": "prv", "mechanisms": [dp_sgd]}
    assert recompute_epsilon(statement) == compute_epsilon([Mechanism(**dp_sgd)], 1e-5)
    for name in ("delta", "accountant", "mechanisms"):
        with pytest.raises(InputError, match=f"not the content of a privacy.json .*{name}"):
            recompute_epsilon({key: value for key, value in statement.items() if key != name})
    with pytest.raises(InputError, match="not the content of a privacy.json"):
        recompute_epsilon({**statement, "mechanisms": [{"name": "dp_sgd"}]})
    with pytest.raises(InputError, match="sample rate of dp_sgd is 2"):
        recompute_epsilon({**statement, "mechanisms": [{**dp_sgd, "sample_rate": 2}]})


def test_what_does_not_say_that_it_is_private_is_not_published():
    with pytest.raises(InputError, match="not private"):
        check_publishable(PrivacyStatement.from_dict({"delta": 1e-5, "accountant": "prv", "mechanisms": []}))
    check_publishable(PrivacyLedger(1e-5).statement(10))


@pytest.fixture
def statement(tmp_path):
    return json.loads(write_privacy_json(tmp_path / "privacy.json").read_text())


@pytest.mark.parametrize(
    ("stated", "too_little"),
    [
        (lambda epsilon: epsilon * (1 - 5e-7), False),  # rounding on another machine
        (lambda epsilon: 2 * epsilon, False),
        (lambda epsilon: epsilon * (1 - 2e-6), True),
        (lambda epsilon: float("nan"), True),
        (lambda epsilon: None, True),
        (str, True),
    ],
)
def test_script_and_push_agree_on_what_understates(statement, tmp_path, recompute, stated, too_little):
    epsilon = statement["epsilon"]
    statement["epsilon"] = stated(epsilon)
    assert understates(PrivacyStatement.from_dict(statement), epsilon) == too_little
    path = tmp_path / "privacy.json"
    path.write_text(json.dumps(statement))
    assert recompute(path)[0] == too_little
    with pytest.raises(InputError, match="states epsilon") if too_little else contextlib.nullcontext():
        check_statement(path)


def test_the_script_confirms_a_true_statement_and_convicts_a_false_one(statement, tmp_path, recompute):
    path = tmp_path / "privacy.json"
    path.write_text(json.dumps(statement))
    code, printed, _ = recompute(path)
    assert not code
    assert f"{statement['epsilon']:.4f}" in printed
    assert "dp_sgd" in printed

    for stated in (0.9 * statement["epsilon"], float("nan")):
        path.write_text(json.dumps({**statement, "epsilon": stated}))
        code, printed, _ = recompute(path)
        assert code == 1
        assert "understates" in printed

    path.write_text(json.dumps({**statement, "private": False, "remarks": ["NOT PRIVATE: a test."]}))
    code, printed, _ = recompute(path)
    assert code == 1
    assert "NOT PRIVATE: a test." in printed


@pytest.mark.parametrize("content", ["", "[]", '{"mechanisms": 3}'])
def test_the_script_refuses_what_is_no_statement_in_one_sentence(tmp_path, recompute, content):
    path = tmp_path / "privacy.json"
    path.write_text(content)
    code, _, message = recompute(path)
    assert code == 1
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_a_statement_is_written_as_it_was_read(tmp_path):
    """A statement is written byte for byte, so that a data set is pushed with the statement of its model."""
    path = write_run(tmp_path / "run", STEP, STEP, prior_runs=CountedRun.of_journal(previous_journal(tmp_path)))
    text = (path / "privacy.json").read_text()
    statement = PrivacyStatement.read(path / "privacy.json")
    assert statement.to_json() == text == json.dumps(json.loads(text), indent=2) + "\n"
    assert list(json.loads(text)) == [
        *("epsilon", "delta", "accountant", "unit", "adjacency", "scope", "dataset_size", "private", "remarks", "runs"),
        *("mechanisms", "public_assumptions", "versions"),
    ]
    with pytest.raises(FrozenInstanceError):
        statement.epsilon = 0.1


def previous_journal(tmp_path):
    return read_released(write_run(tmp_path / "previous", STEP) / "private" / "journal.jsonl")


def test_what_a_newer_version_says_besides_is_kept(statement):
    statement["unit_of_privacy"] = "one user"
    assert PrivacyStatement.from_dict(statement).to_dict() == statement


def test_epsilon_is_recomputed_from_a_path_a_dict_or_a_statement(statement, tmp_path):
    path = tmp_path / "privacy.json"
    for source in (path, str(path), statement, PrivacyStatement.from_dict(statement)):
        assert recompute_epsilon(source) == statement["epsilon"]


def old_version(statement):
    """The statement as older versions wrote it."""
    mechanisms = [{name: value for name, value in entry.items() if name != "run"} for entry in statement["mechanisms"]]
    kept = {name: value for name, value in statement.items() if name not in ("runs", "scope")}
    return {**kept, "adjacency": "add_or_remove_one_record", "mechanisms": mechanisms}


def test_files_of_older_versions_are_read_as_ever(statement, tmp_path, recompute):
    path = tmp_path / "privacy.json"
    path.write_text(json.dumps(old_version(statement)))
    assert check_statement(path).adjacency == "add_or_remove_one_record"
    assert not recompute(path)[0]
    assert [run.id for run in PrivacyStatement.from_dict(old_version(statement)).runs] == [None]
    assert recompute_epsilon(old_version(statement)) == statement["epsilon"]


def test_an_adjacency_that_means_something_else_is_refused(tmp_path, recompute):
    path = write_privacy_json(tmp_path / "privacy.json", adjacency="replace_one_record")
    with pytest.raises(InputError, match="for the adjacency replace_one_record, which this version does not know: use"):
        check_statement(path)
    assert "which this version does not know" in recompute(path)[2]


@pytest.mark.parametrize(
    "changes",
    [
        {"runs": [], "mechanisms": []},
        {"runs": 3},
        {"runs": [{"id": 7, "sessions": {}}]},
        {"runs": [{"id": "a"}]},
        {"runs": [{"id": "a", "sessions": {"b": "many"}}]},
        {"runs": [{"id": "a", "sessions": ["b"]}]},
        {"run of a mechanism": -1},
        {"run of a mechanism": 1},
        {"run of a mechanism": "this"},
        {"name of a mechanism": "dp_sgd\n  together  epsilon 0.1"},
        {"steps of a mechanism": 2.5},
        {"remarks": 3},
        {"public_assumptions": [{}]},
    ],
    ids=str,
)
def test_a_statement_that_names_its_runs_wrongly_is_refused_in_one_sentence(statement, tmp_path, changes):
    path = tmp_path / "privacy.json"
    for name, value in changes.items():
        if name.endswith("of a mechanism"):
            statement["mechanisms"][1][name.split()[0]] = value
        else:
            statement[name] = value
    path.write_text(json.dumps(statement))
    with pytest.raises(InputError, match="not the content of a privacy.json") as refused:
        check_statement(path)
    assert "\n" not in str(refused.value)


STEP = Mechanism("dp_sgd", 2.0, 0.1, 1, 1.0)


def test_a_statement_names_its_run_and_how_far_each_of_its_sessions_had_come(tmp_path):
    directory = write_run(tmp_path / "run", STEP, STEP)
    first = json.loads((directory / "privacy.json").read_text())
    resume_run(directory)  # and releases nothing
    assert json.loads((directory / "privacy.json").read_text())["runs"] == first["runs"]
    resume_run(directory, STEP)
    (run,) = json.loads((directory / "privacy.json").read_text())["runs"]
    assert run["id"] == first["runs"][0]["id"]
    assert list(run["sessions"].values()) == [2, 1]
    assert run["sessions"].items() > first["runs"][0]["sessions"].items()
    assert check_statement(directory / "privacy.json").runs[0].mechanisms == [replace(STEP, steps=3)]


def test_a_statement_of_a_copy_of_the_run_is_noticed_where_the_journal_is_at_hand(tmp_path):
    directory = write_run(tmp_path / "run", STEP)
    shutil.copytree(directory, tmp_path / "copy")
    for place, steps in ((directory, 1), (tmp_path / "copy", 2)):  # the numbers of steps alone would not show the copy
        resume_run(place, *[STEP] * steps)
    shutil.copy(directory / "privacy.json", tmp_path / "copy")
    with pytest.raises(InputError, match="another run or of a copy of this one that was resumed elsewhere: put it"):
        check_statement(tmp_path / "copy" / "privacy.json")
    other = write_run(tmp_path / "other", STEP, STEP)
    shutil.copy(other / "privacy.json", directory)
    with pytest.raises(InputError, match="another run or of a copy"):
        check_statement(directory / "privacy.json")


def test_steps_of_a_previous_run_do_not_stand_for_steps_of_its_own(tmp_path):
    """Steps of both runs have the same name, and may have the same settings."""
    previous = PrivacyStatement.read(write_run(tmp_path / "one", STEP, STEP) / "privacy.json").runs
    directory = write_run(tmp_path / "two", STEP, prior_runs=previous)
    stated = check_statement(directory / "privacy.json")
    check_journal(directory, stated, None)
    resume_run(directory, STEP, saved=False)
    with pytest.raises(InputError, match="releases that privacy.json does not count"):
        check_journal(directory, stated, None)


def test_a_statement_without_the_previous_runs_of_the_journal_is_not_published(tmp_path):
    previous = PrivacyStatement.read(write_run(tmp_path / "one", STEP) / "privacy.json").runs
    directory = write_run(tmp_path / "two", STEP, prior_runs=previous)
    stated = check_statement(directory / "privacy.json")
    own, other = stated.runs
    stated = replace(stated, runs=(own, replace(other, mechanisms=[])))
    with pytest.raises(InputError, match="releases that privacy.json does not count"):
        check_journal(directory, stated, None)
