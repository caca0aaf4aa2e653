"""The plan of a run, and what it says of epsilon while the run goes on."""

from dataclasses import replace

import pytest

from diffusers_dp_curriculum import DPCurriculumConfig, compute_epsilon
from diffusers_dp_curriculum.planning import make_plan


@pytest.fixture(scope="module")
def plan():
    config = DPCurriculumConfig(
        target_epsilon=10.0, central_sample_rate=0.5, train_batch_size=10, max_train_steps=40, accountant="rdp"
    )
    return make_plan(config, (1, 8, 8), 60)


@pytest.mark.parametrize("queries", [0, 1, 2])  # 2: a run was killed between the queries and its first checkpoint
@pytest.mark.parametrize("steps", [0, 1, 17, 38])
def test_what_is_shown_while_a_run_goes_on_is_no_less_than_what_was_spent(plan, queries, steps):
    executed = [replace(plan.central, steps=queries * plan.central.steps)] if queries else []
    executed += [replace(plan.dp_sgd, steps=steps)] if steps else []
    spent = compute_epsilon(executed, plan.delta, plan.accountant)
    assert min(spent, plan.target_epsilon) <= plan.epsilon_spent(executed) <= plan.target_epsilon


def test_it_is_exact_at_the_end(plan):
    assert plan.epsilon_spent([plan.central, plan.dp_sgd]) == pytest.approx(plan.epsilon_after[40])
