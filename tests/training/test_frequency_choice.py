"""How many frequency features, and with how much noise: from public numbers alone."""

import pytest

from diffusers_dp_curriculum import DatasetInfo, DPCurriculumConfig, Mechanism, compute_epsilon
from diffusers_dp_curriculum.training.frequency_choice import (
    FEWEST_FEATURES,
    LARGEST_NOISE,
    MOST_FEATURES,
    FrequencyChoice,
    choose_frequency_features,
)


CENTRAL = Mechanism("central_images_mean", 5.0, 0.1, 5, 4.0)


def choice(num_records=60_000, classes=10, before=(CENTRAL,), **options):
    config = DPCurriculumConfig(**{"accountant": "rdp", **options})
    info = DatasetInfo(num_records, 1, 28, tuple(map(str, range(classes))) if classes else None)
    return choose_frequency_features(config, info, before)


def query(sigma):
    return Mechanism("frequency_features", sigma, 1.0, 1, 1.0)


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 10.0])
@pytest.mark.parametrize("num_records", [60_000, 1_000_000])
def test_there_is_more_signal_than_noise_and_the_rest_is_left_for_dp_sgd(epsilon, num_records):
    chosen = choice(num_records, target_epsilon=epsilon, before=())
    noise = chosen.num_features**0.5 * chosen.noise_multiplier * 10 / num_records
    assert chosen.num_features <= MOST_FEATURES
    assert noise <= LARGEST_NOISE * 1.001
    spent = compute_epsilon([query(chosen.noise_multiplier)], 1e-5, "rdp")
    assert spent < 0.5 * epsilon


def test_more_records_need_less_of_the_budget():
    sigmas = [choice(number, target_epsilon=10.0).noise_multiplier for number in (10_000, 60_000, 1_000_000)]
    assert sigmas == sorted(sigmas)
    assert sigmas[0] < sigmas[2]


@pytest.mark.parametrize(("num_records", "epsilon"), [(60, 10.0), (1500, 1.0), (5000, 0.1)])
def test_it_is_off_where_the_noise_would_drown_the_features(num_records, epsilon):
    chosen = choice(num_records, target_epsilon=epsilon, before=())
    assert (chosen.num_features, chosen.noise_multiplier) == (0, 0.0)
    assert f"with {num_records // 10:,} records a class the noise on them would be too large" in chosen.reason


@pytest.mark.parametrize(("epsilon", "enough"), [(10.0, 90), (1.0, 650)])
def test_the_documented_number_of_records_a_class_is_enough(epsilon, enough):
    on, off = (choice(10 * records, target_epsilon=epsilon, before=()) for records in (1.1 * enough, 0.9 * enough))
    assert on.num_features > 0
    assert off.num_features == 0


def test_fewer_records_get_fewer_features():
    numbers = [choice(number, target_epsilon=1.0).num_features for number in (60_000, 10_000, 7_000)]
    assert numbers == sorted(numbers, reverse=True)
    assert FEWEST_FEATURES <= numbers[-1] < numbers[0] == MOST_FEATURES
    assert all(number % 2 == 0 for number in numbers)


def test_without_dp_sgd_the_query_takes_what_the_central_images_leave():
    chosen = choice(target_epsilon=0.5, before=[CENTRAL], max_train_steps=0)
    spent = compute_epsilon([CENTRAL, query(chosen.noise_multiplier)], 1e-5, "rdp")
    assert 0.99 * 0.5 < spent <= 0.5


def test_previous_runs_leave_less():
    previous = Mechanism("dp_sgd", 3.0, 0.02, 500, 1.0)
    alone, after = (choice(target_epsilon=1.0, before=before) for before in ([CENTRAL], [CENTRAL, previous]))
    assert after.noise_multiplier > alone.noise_multiplier
    nothing_left = choice(target_epsilon=0.1, before=[previous])
    assert nothing_left.num_features == 0
    assert nothing_left.reason == "nothing of the budget is left for them"


def test_what_is_given_stays():
    assert choice(frequency_features=400, frequency_noise_multiplier=3.0) == FrequencyChoice(400, 3.0)
    assert choice(60, frequency_features=400).num_features == 400
    assert choice(frequency_noise_multiplier=3.0).noise_multiplier == 3.0
    off = choice(frequency_features=0)
    assert off == FrequencyChoice(0, 0.0)
    assert off.put_into(DPCurriculumConfig()).frequency_features == 0


def test_features_that_drown_are_named_even_if_they_were_asked_for():
    chosen = choice(1000, frequency_features=10_000, target_epsilon=1.0)
    assert chosen.num_features == 10_000
    assert "the noise on them is " in chosen.reason


def test_without_classes_all_records_are_of_one():
    assert choice(1500, classes=0, target_epsilon=1.0, before=()).num_features > 0
