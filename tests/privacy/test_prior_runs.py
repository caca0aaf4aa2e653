"""A run whose target covers previous runs on the same records."""

import re
import shutil
from dataclasses import replace

import pytest
from accelerate.state import AcceleratorState

from diffusers_dp_curriculum import DPCurriculumConfig, InputError, Mechanism, compute_epsilon, recompute_epsilon
from diffusers_dp_curriculum.commands.train import parse_arguments
from diffusers_dp_curriculum.privacy.counted_runs import all_mechanisms
from diffusers_dp_curriculum.privacy.journal import read_released
from diffusers_dp_curriculum.privacy.publishability import check_statement
from diffusers_dp_curriculum.privacy.statement import PrivacyStatement
from helpers import resume_run, write_privacy_json, write_run
from helpers.runs import finish, interrupted, make_trainer


pytestmark = pytest.mark.usefixtures("fresh_accelerator")

# The mechanisms of the previous run; CENTRAL equals the central images of `make_trainer`.
CENTRAL = Mechanism("central_images_mean", 5.0, 0.5, 5, 4.0)
DP_SGD = Mechanism("dp_sgd", 2.0, 0.1, 10, 1.0)


@pytest.fixture
def previous(tmp_path):
    return write_run(tmp_path / "previous-run-of-mine", CENTRAL, DP_SGD)


def checked_statement_of(trainer):
    finish(trainer)
    return check_statement(trainer.output_dir / "privacy.json")


def test_the_target_covers_the_previous_run_everywhere(tmp_path, previous, capsys, messages):
    trainer = make_trainer(tmp_path / "model", prior_runs=[str(previous)])
    assert trainer.plan.dp_sgd.noise_multiplier > make_trainer(tmp_path / "other").plan.dp_sgd.noise_multiplier
    privacy = checked_statement_of(trainer)
    together = compute_epsilon([CENTRAL, DP_SGD, *trainer.plan.warm_ups, trainer.plan.dp_sgd], 1e-5, "rdp")
    assert 9.9 <= privacy.epsilon == together == recompute_epsilon(privacy) <= 10
    own, other = privacy.runs
    assert own.mechanisms == trainer.ledger.mechanisms == [*trainer.plan.warm_ups, trainer.plan.dp_sgd]
    assert other == PrivacyStatement.read(previous / "privacy.json").runs[0]
    assert read_released(tmp_path / "model" / "private" / "journal.jsonl").header["prior_runs"] == [other.to_dict()]

    bars = capsys.readouterr().err
    alone = compute_epsilon([CENTRAL, DP_SGD], 1e-5, "rdp")
    assert f"  previous runs   epsilon {alone:.3f} alone\n" in messages.text
    queries = compute_epsilon(trainer.plan.warm_ups, 1e-5, "rdp")
    assert f"epsilon {queries:.3f} alone\n" in messages.text
    assert f"whole run       epsilon {together:.3f} by the rdp accountant, previous runs included" in messages.text
    shown = [float(epsilon) for epsilon in re.findall(r"epsilon=([\d.]+)", bars)]
    assert min(shown) >= alone
    assert shown[-1] == pytest.approx(together, abs=0.01)

    scope = "The figure is for this run and the 1 previous run that it counts: further runs on the same records add up."
    card = (tmp_path / "model" / "README.md").read_text()
    assert scope == privacy.scope
    assert scope in card
    assert scope in trainer.summary()
    assert "| dp_sgd | 2 | 0.1 | 10 | 1 | previous run 1 |" in card
    assert re.search(r"previous run 1\n  central_images_mean +5 +5 +0.5\n  dp_sgd +10 +2 +0.1\n", trainer.summary())
    for path in (tmp_path / "model").rglob("*"):
        if path.is_file():
            assert previous.name.encode() not in path.read_bytes(), path


def test_a_run_without_previous_runs_says_that_it_is_for_itself_alone(tmp_path):
    trainer = make_trainer(tmp_path / "model")
    scope = "The figure is for this run alone: further runs on the same records add up."
    assert checked_statement_of(trainer).scope == scope
    assert scope in (tmp_path / "model" / "README.md").read_text()
    assert scope in trainer.summary()
    assert "previous run 1" not in trainer.summary()


def test_training_stops_where_the_target_is_spent_with_the_previous_runs(tmp_path, previous, messages):
    """The budget pays for fewer steps than planned, as after lost steps that count."""
    trainer = make_trainer(tmp_path / "model", prior_runs=[str(previous)])
    trainer.plan = replace(trainer.plan, dp_sgd=make_trainer(tmp_path / "other").plan.dp_sgd)
    privacy = checked_statement_of(trainer)
    assert privacy.epsilon <= 10
    assert re.search(r"DP-SGD stops after [1-3] of 4 steps", messages.text)


@pytest.mark.parametrize("after", [0, 2, 5])  # before the first checkpoint, in the warm-up, and in DP-SGD
@pytest.mark.parametrize("given", ["again", "left out"])
def test_a_resumed_run_has_the_previous_runs_without_their_files(tmp_path, previous, after, given):
    if after == 0:
        trainer = make_trainer(tmp_path / "model", prior_runs=[str(previous)])
        trainer._open_ledger()
        trainer.ledger.close()
        AcceleratorState._reset_state(reset_partial_state=True)
    else:
        interrupted(tmp_path / "model", after, prior_runs=[str(previous)])
    options = {"prior_runs": [str(previous)]} if given == "again" else {}
    if given == "left out":
        shutil.rmtree(previous)
        with pytest.raises(InputError, match="`prior_runs` cannot be compared .*: leave `prior_runs` out to resume"):
            make_trainer(tmp_path / "model", resume_from_checkpoint="latest", prior_runs=[str(previous)])
    trainer = make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **options)
    assert trainer.plan.previous == (CENTRAL, DP_SGD)
    privacy = checked_statement_of(trainer)
    assert all_mechanisms(privacy.runs[1:]) == [CENTRAL, DP_SGD]
    assert 9.9 <= privacy.epsilon <= 10


@pytest.mark.parametrize("began_with", [True, False])
def test_a_resume_with_other_previous_runs_is_refused(tmp_path, previous, began_with):
    other = write_run(tmp_path / "other", DP_SGD)
    interrupted(tmp_path / "model", 2, prior_runs=[str(previous)] if began_with else None)
    journal = (tmp_path / "model" / "private" / "journal.jsonl").read_bytes()
    for runs in ([str(other)], [str(previous), str(other)], [] if began_with else [str(previous)]):
        with pytest.raises(InputError, match="was started with other `prior_runs` than .*: leave `prior_runs` out"):
            make_trainer(tmp_path / "model", resume_from_checkpoint="latest", prior_runs=runs)
    resume_run(previous, DP_SGD)  # which the interrupted run does not count
    with pytest.raises(InputError, match="or they have released more since: leave `prior_runs` out"):
        make_trainer(tmp_path / "model", resume_from_checkpoint="latest", prior_runs=[str(previous)])
    assert (tmp_path / "model" / "private" / "journal.jsonl").read_bytes() == journal


def test_a_run_that_began_elsewhere_with_others_since_the_trainer_was_made_is_refused(tmp_path, previous):
    trainer = make_trainer(tmp_path / "model", prior_runs=[str(previous)], resume_from_checkpoint="latest")
    write_run(tmp_path / "model", saved=False, target_epsilon=10.0)
    with pytest.raises(InputError, match="was started with other `prior_runs`"):
        trainer.train()


def test_previous_runs_that_leave_nothing_or_cannot_be_counted_are_refused_before_anything_is_written(
    tmp_path, previous
):
    not_private = write_privacy_json(tmp_path / "seeded.json", private=False)
    understates = write_privacy_json(tmp_path / "understates.json", epsilon=0.1)
    for runs, message in [
        (
            [previous],
            "previous runs alone cost epsilon .* leaves nothing of the target 1: raise `target",
        ),
        ([previous, not_private], "seeded.json is not private, and no epsilon covers what it has released: share"),
        ([understates], "understates.json states epsilon 0.1, but its mechanisms amount to"),
        ([tmp_path], "holds neither a privacy.json nor the journal of a run: give"),
    ]:
        with pytest.raises(InputError, match=message) as refused:
            make_trainer(tmp_path / "model", target_epsilon=1.0, prior_runs=[str(run) for run in runs])
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "model").exists()


def test_copies_and_runs_without_a_name_are_said_to_be_counted_twice(tmp_path, previous, caplog):
    copy = shutil.copytree(previous, tmp_path / "copy")
    for place in (previous, copy):
        resume_run(place, DP_SGD)
    trainer = make_trainer(tmp_path / "model", target_epsilon=20.0, prior_runs=[str(previous), str(copy)])
    assert re.search("are of one run, and neither counts all .*: both are counted in full", caplog.text)
    assert trainer.plan.previous == 2 * (CENTRAL, replace(DP_SGD, steps=20))
    assert "Copies of one run that were resumed separately" in " ".join(checked_statement_of(trainer).remarks)


def test_the_flag_takes_directories():
    assert parse_arguments(["--prior_runs", "one", "two", "--seed", "3"])[1].prior_runs == ["one", "two"]
    assert parse_arguments([])[1].prior_runs is None
    assert "prior_runs" not in parse_arguments(["--prior_runs", "one"])[1].hyper_parameters()


@pytest.mark.parametrize("runs", ["my-model", [""]])
def test_what_is_no_list_of_runs_is_refused(runs):
    with pytest.raises(InputError, match="`prior_runs` is .*: give a list"):
        DPCurriculumConfig(prior_runs=runs)
