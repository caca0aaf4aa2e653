"""Chooses how many frequency features to query, and with how much noise, from public numbers alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..checks import AUTO
from ..config import DPCurriculumConfig
from ..data.dataset_info import DatasetInfo
from ..mechanisms.frequency_features import FrequencyFeatureQuery
from ..mechanisms.public_eyes import PublicEyes
from ..privacy.accounting import Mechanism, calibrate_noise_multiplier, compute_epsilon


MOST_FEATURES = 3000
FEWEST_FEATURES = 1000
# The noise on the features of a class of average size, sqrt(D) sigma C / N, against their norm, 1. Below the first
# number less noise hardly helps, and the budget is better spent on DP-SGD; above the second the features are lost.
SMALL_NOISE = 0.05
LARGEST_NOISE = 0.5
# The part of the budget that the query may take before DP-SGD. It is counted in 1 / sigma^2, which adds up over
# Gaussian mechanisms.
LARGEST_SHARE = 0.15


@dataclass(frozen=True)
class FrequencyChoice:
    """The size of the frequency query.

    Args:
        num_features (`int`): D; 0 for no query.
        noise_multiplier (`float`): sigma; 0 for no query.
        reason (`str`): Why there is no query, or why its answer will be mostly noise; else empty.
    """

    num_features: int
    noise_multiplier: float
    reason: str = ""

    def put_into(self, config: DPCurriculumConfig) -> DPCurriculumConfig:
        """A config with the chosen numbers in the place of "auto".

        Args:
            config (`DPCurriculumConfig`): The hyper-parameters.
        """
        if self.num_features == 0:
            return replace(config, frequency_features=0)
        return replace(config, frequency_features=self.num_features, frequency_noise_multiplier=self.noise_multiplier)


def choose_frequency_features(
    config: DPCurriculumConfig, info: DatasetInfo, before: Sequence[Mechanism], eyes: PublicEyes | None = None
) -> FrequencyChoice:
    """Choose the number of features and the noise multiplier where the config says `"auto"`.

    The noise has the L2 norm sqrt(D) sigma C / N relative to the mean features of an average class, with D features, C
    classes and N records (or users, if the unit of privacy is a user). The rule:

    - sigma takes at most `LARGEST_SHARE` of the budget that other mechanisms have left, and no more than makes this
      noise `SMALL_NOISE` with `MOST_FEATURES` features. Without DP-SGD steps it takes all that is left.
    - D is `MOST_FEATURES`, or less to keep the noise below `LARGEST_NOISE`.
    - If D would be less than `FEWEST_FEATURES`, there is no query.

    A public model has the number of features that it has: it takes the place of `MOST_FEATURES` and `FEWEST_FEATURES`.

    Args:
        config (`DPCurriculumConfig`): The hyper-parameters.
        info (`DatasetInfo`): The public description of the data set.
        before (`Sequence[Mechanism]`): Previous runs, and the queries of the central images.
        eyes (`PublicEyes`, *optional*): The public model whose features are queried.
    """
    if config.frequency_features == 0:
        return FrequencyChoice(0, 0.0)
    most, fewest = (MOST_FEATURES, FEWEST_FEATURES) if eyes is None else (eyes.num_features, eyes.num_features)
    units_per_class = info.num_units / info.num_labels
    sigma = config.frequency_noise_multiplier
    if sigma == AUTO:
        if compute_epsilon(before, config.target_delta, config.accountant) >= config.target_epsilon:
            return FrequencyChoice(0, 0.0, "nothing of the budget is left for them")
        whole = calibrate_noise_multiplier(
            config.target_epsilon,
            config.target_delta,
            FrequencyFeatureQuery().mechanism(info),  # of the same cost as that of a public model
            before,
            config.accountant,
        )
        sigma = whole
        if config.max_train_steps > 0:
            sigma = max(whole / LARGEST_SHARE**0.5, SMALL_NOISE * units_per_class / most**0.5)
    sigma = float(sigma)
    features = config.frequency_features
    if features == AUTO:
        affordable = (LARGEST_NOISE * units_per_class / sigma) ** 2
        features = 2 * math.floor(min(affordable, most) / 2)
        if features < fewest:
            return FrequencyChoice(
                0,
                0.0,
                f"with {units_per_class:,.0f} {info.unit}s a class the noise on them would be too large",
            )
    noise = int(features) ** 0.5 * sigma / units_per_class
    warning = f"the noise on them is {noise:.2g} times as large as they are" if noise > 1 else ""
    return FrequencyChoice(int(features), sigma, warning)
