"""Chooses the noise on the central images, from public numbers alone."""

from collections.abc import Sequence

from ..checks import AUTO
from ..config import DPCurriculumConfig
from ..data.dataset_info import DatasetInfo
from ..mechanisms.central_images import CentralImageQueries
from ..privacy.accounting import Mechanism, calibrate_noise_multiplier, compute_epsilon


PUBLISHED_NOISE = 5.0
# The part of what is left of the target epsilon that the queries may cost alone. As small epsilons add up like squares,
# a quarter is some 6 % of the budget. With the published sample rate, the published noise costs less at the published
# targets, 1 and 10.
LARGEST_PART = 0.25


def choose_central_noise(config: DPCurriculumConfig, info: DatasetInfo, previous: Sequence[Mechanism] = ()) -> float:
    """Choose the noise multiplier of the central-image queries where the config says `"auto"`.

    It is the published one, or larger so that the queries cost at most a part `LARGEST_PART` of what previous runs have
    left of the target: central images teach less than what the rest of the budget can buy.

    Args:
        config (`DPCurriculumConfig`): The hyper-parameters.
        info (`DatasetInfo`): The public description of the data set.
        previous (`Sequence[Mechanism]`, *optional*): The mechanisms of previous runs, whose cost the target covers too.
    """
    if config.central_noise_multiplier != AUTO:
        return float(config.central_noise_multiplier)
    if config.central_statistic == "none":
        return PUBLISHED_NOISE
    queries = CentralImageQueries(
        config.central_images_per_class,
        config.central_statistic,
        PUBLISHED_NOISE,
        config.central_sample_rate,
        config.central_pool_factor,
        config.central_mode_bins,
    ).mechanism(info)
    spent = compute_epsilon(previous, config.target_delta, config.accountant)
    limit = spent + LARGEST_PART * (config.target_epsilon - spent)
    with_queries = compute_epsilon([*previous, queries], config.target_delta, config.accountant)
    if with_queries <= limit or limit <= spent:  # where nothing is left, the plan is refused
        return PUBLISHED_NOISE
    return calibrate_noise_multiplier(limit, config.target_delta, queries, previous, config.accountant)
