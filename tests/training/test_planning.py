"""The plan of a run, and the epsilon that the run shows during training."""

from dataclasses import replace

import pytest

from diffusers_dp_curriculum import DPCurriculumConfig, InputError, Mechanism, compute_epsilon
from diffusers_dp_curriculum.data.dataset_info import DatasetInfo
from diffusers_dp_curriculum.training.planning import make_plan


@pytest.fixture(scope="module")
def plan():
    config = DPCurriculumConfig(
        target_epsilon=10.0, central_sample_rate=0.5, train_batch_size=10, max_train_steps=40, accountant="rdp"
    )
    return make_plan(config, DatasetInfo(60, 1, 8))


@pytest.mark.parametrize("queries", [0, 1, 2])  # 2: a run was killed between the queries and its first checkpoint
@pytest.mark.parametrize("steps", [0, 1, 17, 38])
def test_what_is_shown_during_a_run_is_no_less_than_what_was_spent(plan, queries, steps):
    executed = [replace(plan.warm_ups[0], steps=queries * plan.warm_ups[0].steps)] if queries else []
    executed += [replace(plan.dp_sgd, steps=steps)] if steps else []
    spent = compute_epsilon(executed, plan.delta, plan.accountant)
    assert min(spent, plan.target_epsilon) <= plan.epsilon_spent(executed) <= plan.target_epsilon


def test_it_is_exact_at_the_end(plan):
    assert plan.epsilon_spent([*plan.warm_ups, plan.dp_sgd]) == pytest.approx(plan.epsilon_after[40])


@pytest.fixture(scope="module")
def plan_after_a_run(plan):
    """A plan with the target of `plan`, which also covers a previous run with the same two kinds of mechanisms."""
    config = DPCurriculumConfig(
        target_epsilon=10.0, central_sample_rate=0.5, train_batch_size=10, max_train_steps=40, accountant="rdp"
    )
    return make_plan(config, DatasetInfo(60, 1, 8), [*plan.warm_ups, replace(plan.dp_sgd, steps=5)])


def test_a_target_covers_previous_runs(plan, plan_after_a_run):
    assert plan_after_a_run.warm_ups == plan.warm_ups
    assert plan_after_a_run.dp_sgd.noise_multiplier > 1.02 * plan.dp_sgd.noise_multiplier
    everything = [*plan_after_a_run.previous, *plan_after_a_run.warm_ups, plan_after_a_run.dp_sgd]
    assert 9.9 <= compute_epsilon(everything, 1e-5, "rdp") == plan_after_a_run.epsilon_after[40] <= 10
    alone = compute_epsilon(plan_after_a_run.previous, 1e-5, "rdp")
    assert f"  previous runs   epsilon {alone:.3f} alone\n" in str(plan_after_a_run)
    central = compute_epsilon(plan.warm_ups, 1e-5, "rdp")
    for text in (str(plan), str(plan_after_a_run)):
        assert f"sample rate 0.5, epsilon {central:.3f} alone\n" in text
    assert "previous" not in str(plan)


@pytest.mark.parametrize("steps", [0, 1, 17, 40])
def test_what_is_shown_counts_previous_runs_and_takes_none_of_their_steps_for_its_own(plan_after_a_run, steps):
    plan = plan_after_a_run
    executed = [*plan.warm_ups, *([replace(plan.dp_sgd, steps=steps)] if steps else [])]
    spent = compute_epsilon([*plan.previous, *executed], plan.delta, plan.accountant)
    assert min(spent, plan.target_epsilon) <= plan.epsilon_spent(executed) <= plan.target_epsilon
    if steps in plan.epsilon_after:
        assert plan.epsilon_spent(executed) == pytest.approx(spent)


@pytest.mark.parametrize(
    ("target", "what"), [(1.5, "previous runs alone cost"), (2.4, "previous runs and the warm-up queries alone cost")]
)
def test_previous_runs_that_leave_nothing_are_refused(target, what):
    config = DPCurriculumConfig(
        target_epsilon=target, central_sample_rate=1.0, central_noise_multiplier=5.0, accountant="rdp"
    )
    previous = [Mechanism("central_images_mean", 5.0, 1.0, 5, 4.0)]  # epsilon 1.9, and 2.8 with the same queries again
    with pytest.raises(InputError, match=f"The {what} epsilon .* leaves nothing of the target {target}.*: raise"):
        make_plan(config, DatasetInfo(1000, 1, 8), previous)
