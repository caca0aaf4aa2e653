"""Allowed values of arguments: each range and list of choices is declared once, for options and functions alike."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import InputError


AUTO = "auto"


@dataclass(frozen=True)
class Range:
    """The finite numbers that satisfy a condition.

    Args:
        words (`str`): The numbers in words, as in "give at least 1".
        contains (`Callable[[float], bool]`): The condition, called with a finite number.

    Examples:
        >>> from diffusers_dp_curriculum.checks import at_least
        >>> at_least(1).check("max_train_steps", 0)
        Traceback (most recent call last):
        ...
        diffusers_dp_curriculum.errors.InputError: `max_train_steps` is 0: give at least 1.
    """

    words: str
    contains: Callable[[float], bool]

    def check(self, name: str, value: Any) -> None:
        """Raise an `InputError` that names the argument, if `value` is not in the range."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and self.contains(value)):
            raise InputError(f"`{name}` is {value}: give {self.words}.")


@dataclass(frozen=True)
class Choice:
    """One of several words.

    Args:
        values (`tuple[str, ...]`): The words.

    Examples:
        >>> from diffusers_dp_curriculum.checks import ACCOUNTANT
        >>> ACCOUNTANT.check("accountant", "gdp")
        Traceback (most recent call last):
        ...
        diffusers_dp_curriculum.errors.InputError: `accountant` is "gdp": choose prv or rdp.
    """

    values: tuple[str, ...]

    @property
    def words(self) -> str:
        """The choices as a list, as in "choose prv or rdp"."""
        return f"{', '.join(self.values[:-1])} or {self.values[-1]}"

    def check(self, name: str, value: Any) -> None:
        """Raise an `InputError` that names the argument, if `value` is none of the words."""
        if value not in self.values:
            raise InputError(f'`{name}` is "{value}": choose {self.words}.')


def above(bound: float) -> Range:
    """Numbers greater than `bound`."""
    return Range(f"a number above {bound:g}", lambda value: value > bound)


def at_least(bound: float) -> Range:
    """Numbers not smaller than `bound`."""
    return Range(f"at least {bound:g}", lambda value: value >= bound)


def auto_or(numbers: Range) -> Range:
    """The word "auto" for a value that the run chooses itself, or one of the given numbers.

    An [`Option`] whose default is "auto" accepts the word before it checks the range.
    """
    return Range(f"{AUTO}, or {numbers.words}", numbers.contains)


def one_of(*values: str) -> Choice:
    """One of the given words."""
    return Choice(values)


PROBABILITY_BELOW_ONE = Range("a number in [0, 1)", lambda value: 0 <= value < 1)
SAMPLE_RATE = Range("a number in (0, 1]", lambda value: 0 < value <= 1)
SEED = Range("a whole number from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32)

# The budget. No accountant is exact enough for a delta below 1e-12.
ACCOUNTANT = one_of("prv", "rdp")
DELTA = Range("a number from 1e-12 to 1, below 1/N", lambda value: 1e-12 <= value < 1)

# Central images.
STATISTIC = one_of("mean", "mode")
MODE_BINS = at_least(2)

# Frequency features.
NUM_FREQUENCY_FEATURES = Range("an even number above 0", lambda value: value > 0 and value % 2 == 0)
FREQUENCY_FEATURES_OR_NONE = Range(
    "0 or an even number above it", lambda value: value == 0 or NUM_FREQUENCY_FEATURES.contains(value)
)
KERNEL_WIDTH = Range("a number from 1e-6 to 1e6", lambda value: 1e-6 <= value <= 1e6)

# The loss.
TIMESTEP_SAMPLING = one_of("log_normal", "uniform")
NOISE_LEVEL_STD = above(0)
LABEL_DROPOUT = PROBABILITY_BELOW_ONE

# Sampling, and the files of a synthetic data set.
GUIDANCE_SCALE = at_least(0)
S_CHURN = at_least(0)
FILE_FORMAT = one_of("parquet", "imagefolder")

# The classifiers that measure utility.
CLASSIFIER = one_of("cnn", "resnet")

# Networks and noise schedules. EDM's lowest noise level is from Karras et al. 2022, table 1.
RESOLUTION = Range("a whole number above 0", lambda value: value > 0 and isinstance(value, int))
IMAGE_CHANNELS = Range("1 for grey images or 3 for RGB", lambda value: value in (1, 3))
NOISE_SCHEDULER = one_of("ddpm", "edm")
BETA_SCHEDULE = one_of("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
DDPM_NUM_STEPS = at_least(2)
EDM_SIGMA_MIN = 0.002
EDM_SIGMA_MAX = above(EDM_SIGMA_MIN)
EDM_SIGMA_DATA = above(0)
PREDICTION_TYPE = one_of("epsilon", "v_prediction", "sample")
NORM_GROUPS = 8
BLOCK_CHANNELS = Range(f"a multiple of {NORM_GROUPS}", lambda value: value > 0 and value % NORM_GROUPS == 0)
LAYERS_PER_BLOCK = at_least(1)
ATTENTION_LEVELS = at_least(0)
