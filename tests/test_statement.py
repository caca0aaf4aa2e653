"""What may be published under a privacy.json, and the script that recomputes one."""

import contextlib
import json
import runpy
import sys
from pathlib import Path

import pytest

from diffusers_dp_curriculum.accounting import Mechanism, compute_epsilon
from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.ledger import PrivacyLedger
from diffusers_dp_curriculum.statement import check_publishable, check_statement, recompute_epsilon, understates
from helpers import write_privacy_json


RECOMPUTE = Path(__file__).parents[1] / "examples" / "recompute_epsilon.py"


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
        check_publishable({"epsilon": 1.0})
    check_publishable(PrivacyLedger(1e-5).statement(10))


@pytest.fixture
def statement(tmp_path):
    return json.loads(write_privacy_json(tmp_path / "privacy.json").read_text())


@pytest.fixture
def recompute(monkeypatch, capsys):
    """Run the script as `python` does, without importing everything again."""

    def run(path):
        monkeypatch.setattr(sys, "argv", [str(RECOMPUTE), str(path)])
        code = 0
        try:
            runpy.run_path(str(RECOMPUTE), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("stated", "too_little"),
    [
        (lambda epsilon: epsilon * (1 - 5e-7), False),  # rounded elsewhere
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
    assert understates(statement, epsilon) == too_little
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
    message, _, _ = recompute(path)
    assert message.startswith("error: ")  # which Python prints, and ends with exit code 1
    assert message.count("\n") == 0
