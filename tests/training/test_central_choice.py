"""How much noise the central images get: from public numbers alone."""

import pytest

from diffusers_dp_curriculum import DatasetInfo, DPCurriculumConfig, Mechanism, compute_epsilon
from diffusers_dp_curriculum.training.central_choice import LARGEST_PART, PUBLISHED_NOISE, choose_central_noise
from diffusers_dp_curriculum.training.planning import make_plan


INFO = DatasetInfo(60_000, 1, 28, tuple(map(str, range(10))))


def config_of(**options):
    return DPCurriculumConfig(**{"accountant": "rdp", "max_train_steps": 10, **options})


@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_at_the_published_targets_it_is_the_published_noise(epsilon):
    assert choose_central_noise(config_of(target_epsilon=epsilon), INFO) == PUBLISHED_NOISE == 5.0


@pytest.mark.parametrize("previous", [[], [Mechanism("dp_sgd", 5.0, 0.1, 10, 1.0)]])
@pytest.mark.parametrize("options", [{"target_epsilon": 0.4}, {"target_epsilon": 1.0, "central_sample_rate": 1.0}])
def test_the_queries_take_a_quarter_of_what_is_left_at_most(options, previous):
    config = config_of(**options)
    sigma = choose_central_noise(config, INFO, previous)
    rate = config.central_sample_rate
    spent = compute_epsilon(previous, 1e-5, "rdp")
    with_queries = compute_epsilon([*previous, Mechanism("central_images_mean", sigma, rate, 5, 1.0)], 1e-5, "rdp")
    assert sigma > PUBLISHED_NOISE
    assert with_queries - spent == pytest.approx(LARGEST_PART * (config.target_epsilon - spent), rel=0.05)


def test_a_number_is_taken_as_it_is_and_no_stage_needs_none():
    assert choose_central_noise(config_of(target_epsilon=0.3, central_noise_multiplier=7.5), INFO) == 7.5
    assert choose_central_noise(config_of(target_epsilon=0.3, central_statistic="none"), INFO) == PUBLISHED_NOISE


def test_a_plan_has_the_noise_that_was_chosen_and_leaves_most_to_the_other_stages():
    config = config_of(target_epsilon=0.3, frequency_features=0)
    plan = make_plan(config, INFO)
    (central,) = plan.warm_ups
    assert central.noise_multiplier == plan.central_noise_multiplier == choose_central_noise(config, INFO) > 5
    assert plan.put_into(config).central_noise_multiplier == central.noise_multiplier
    without = make_plan(config_of(target_epsilon=0.3, frequency_features=0, central_statistic="none"), INFO)
    assert plan.dp_sgd.noise_multiplier < 1.1 * without.dp_sgd.noise_multiplier
