"""Allowed values of arguments: each range and list of choices is declared once, for options and functions alike.

So is what several arguments must satisfy together. Nothing slow is imported here, so that a command can refuse wrong
values at once.
"""

import math
import numbers
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.util import find_spec
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
            raise InputError(f"`{name}` is {value!r}: give {self.words}.")

    def check_each(self, name: str, values: Any) -> None:
        """Raise an `InputError` that names the argument, if `values` is not a list or tuple of numbers in the range."""
        if not isinstance(values, (list, tuple)) or len(values) == 0:
            raise InputError(f"`{name}` is {values!r}: give a list, with {self.words} for each item.")
        for value in values:
            self.check(name, value)


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

# Audits: fewer canaries prove nothing.
NUM_CANARIES = at_least(100)
CONFIDENCE = Range("a number from 0.5 to below 1", lambda value: 0.5 <= value < 1)

# Networks and noise schedules. EDM's lowest noise level is from Karras et al. 2022, table 1.
RESOLUTION = Range("a whole number above 0", lambda value: value > 0 and isinstance(value, int))
IMAGE_CHANNELS = Range("1 for grey images or 3 for RGB", lambda value: value in (1, 3))
NOISE_SCHEDULER = one_of("ddpm", "edm")
BETA_SCHEDULE = one_of("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
DDPM_NUM_STEPS = at_least(2)
EDM_NUM_STEPS = 1000
EDM_SIGMA_MIN = 0.002
EDM_SIGMA_MAX = above(EDM_SIGMA_MIN)
EDM_SIGMA_DATA = above(0)
PREDICTION_TYPE = one_of("epsilon", "v_prediction", "sample")
NORM_GROUPS = 8
BLOCK_CHANNELS = Range(
    f"a multiple of {NORM_GROUPS}",
    lambda value: isinstance(value, int) and value > 0 and value % NORM_GROUPS == 0,
)
LAYERS_PER_BLOCK = at_least(1)
ATTENTION_LEVELS = at_least(0)


def check_levels(attention_levels: int, num_levels: int, resolution: int | None = None) -> None:
    """Refuse a network with more levels of attention than levels, or with more levels than images can be halved for.

    Args:
        attention_levels (`int`): The number of coarsest levels that have attention.
        num_levels (`int`): The number of levels.
        resolution (`int`, *optional*): Height and width of the images, if they are known.

    Raises:
        InputError: If the numbers do not fit each other.
    """
    if not 0 <= attention_levels <= num_levels:
        raise InputError(f"`attention_levels` is {attention_levels}: give a number from 0 to {num_levels}, the levels.")
    if resolution is not None and resolution % 2 ** (num_levels - 1):
        raise InputError(
            f"A resolution of {resolution} cannot be halved {num_levels - 1} times, as the UNet's {num_levels} levels "
            f"need: choose a multiple of {2 ** (num_levels - 1)}, or a network with fewer levels."
        )


def check_edm(prediction_type: str, timestep_sampling: str) -> None:
    """Refuse what EDM's loss does not have.

    Args:
        prediction_type (`str`): What the network predicts.
        timestep_sampling (`str`): How noise levels are drawn.

    Raises:
        InputError: If one of them is for DDPM alone.
    """
    if timestep_sampling != "log_normal":
        raise InputError(
            f'EDM has no timesteps to draw by `timestep_sampling` "{timestep_sampling}": use "log_normal".'
        )
    if prediction_type not in ("epsilon", "v_prediction"):
        raise InputError(
            f'EDM has no prediction type "{prediction_type}": use "epsilon", which is the paper\'s, or "v_prediction", '
            "its negative."
        )


def check_sampler(num_inference_steps: int, most: int, s_churn: float, edm: bool) -> None:
    """Refuse settings of sampling that a scheduler does not have.

    Args:
        num_inference_steps (`int`): The number of denoising steps.
        most (`int`): The number of timesteps that the scheduler was trained with.
        s_churn (`float`): The amount of fresh noise in EDM's stochastic sampling.
        edm (`bool`): Whether it is a scheduler of EDM.

    Raises:
        InputError: If a value is out of range.
    """
    if not 1 <= num_inference_steps <= most:
        raise InputError(
            f"`num_inference_steps` is {num_inference_steps}: give 1 to {most}, the steps of the schedule."
        )
    S_CHURN.check("s_churn", s_churn)
    if s_churn > 0 and not edm:
        raise InputError("`s_churn` belongs to EDM's sampler: leave it at 0, or use an EDMEulerScheduler.")


def check_logger(logger: str | None) -> None:
    """Refuse a logger whose package is not installed.

    Raises:
        InputError: If none of its packages is.
    """
    packages = {logger, "tensorboardX"} if logger == "tensorboard" else {logger}
    # A directory of this name, in which the logger has written, could be imported like a package.
    if logger is not None and not any(next(iter(distributions(name=name)), None) for name in packages):
        raise InputError(
            f"The logger {logger} is not installed: install it (`pip install {logger}`), or choose another `logger`."
        )


def check_trainable(trainable: str) -> None:
    """Refuse what is neither a word for a part of the network nor a regular expression.

    Raises:
        InputError: If it cannot be compiled.
    """
    try:
        re.compile(trainable)
    except re.error as error:
        raise InputError(
            f'`trainable` is "{trainable}", which is no regular expression ({error}): give all, attention, lora, '
            "class_embedding, or a regular expression for whole names of parameters."
        ) from error


def check_peft(trainable: str) -> None:
    """Refuse adapters where their package is not installed.

    Raises:
        InputError: If `trainable` is `"lora"`, and peft is missing.
    """
    if trainable == "lora" and find_spec("peft") is None:
        raise InputError(
            "The package peft, which makes the adapters of `trainable` lora, is not installed: install it (`pip "
            'install "diffusers-dp-curriculum[lora]"`), or choose another `trainable`.'
        )


def check_one_source(dataset_name: str | None, train_data_dir: str | None) -> None:
    """Refuse two sources of one data set, or none."""
    if (dataset_name is None) == (train_data_dir is None):
        raise InputError("`dataset_name` and `train_data_dir` are both given or both missing: pass one of them.")


def check_pixel_range(pixel_range: Sequence[float] | None) -> None:
    """Refuse a range of pixels that is not the value of black and a larger one of white."""
    if pixel_range is None:
        return
    finite = [value for value in pixel_range if isinstance(value, numbers.Real) and math.isfinite(value)]
    if not (len(pixel_range) == len(finite) == 2 and finite[0] < finite[1]):
        raise InputError(
            f"`pixel_range` is {' '.join(map(str, pixel_range))}: give two numbers, the value of black and a larger "
            "one of white."
        )


def check_background(background: str | None) -> None:
    """Refuse a background that is no opaque colour."""
    from PIL import ImageColor

    try:
        is_opaque = background is None or ImageColor.getcolor(background, "RGBA")[3] == 255
    except ValueError:
        is_opaque = False
    if not is_opaque:
        raise InputError(f'`background` is "{background}": give the name of a colour, such as white, or #rrggbb.')
