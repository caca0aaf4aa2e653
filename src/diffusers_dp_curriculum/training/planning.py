"""Plans what a run will do and cost, from public values, before any sensitive record is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import DPCurriculumConfig
from ..data.dataset_info import DatasetInfo, classes_in_words
from ..errors import InputError
from ..mechanisms.dp_sgd import dp_sgd_mechanism
from ..mechanisms.public_eyes import PublicEyes
from ..privacy.accounting import Mechanism, calibrate_noise_multiplier, compute_epsilon
from ..units import RECORD
from .central_choice import choose_central_noise
from .frequency_choice import FrequencyChoice, choose_frequency_features
from .stages import Stage, WarmUpStage, warm_up_stages


def describe_records(info: DatasetInfo, provenance: Mapping[str, str]) -> str:
    """Describe the records that a plan is for, and where they come from.

    Args:
        info (`DatasetInfo`): The public description of the data set.
        provenance (`Mapping[str, str]`): Lines about the source of the records, by their titles; never published.
    """
    lines = dict(provenance)
    if info.class_names is not None:
        lines.setdefault("classes", classes_in_words(info.class_names))
    classes = ", without labels" if info.num_classes is None else f" in {info.num_classes} classes"
    size = f"{info.resolution}x{info.resolution}x{info.num_channels}"
    title = f"Plan for {info.num_units:,} {info.unit}s of {size}{classes}"
    return "\n".join([title, *(f"  {name:<15} {text}" for name, text in lines.items())])


@dataclass(frozen=True)
class Plan:
    """The mechanisms of a run, with a DP-SGD noise multiplier for which all of them together meet the target.

    Args:
        target_epsilon (`float`): The budget of the whole run together with the previous runs that it counts.
        delta (`float`): Delta of the whole run.
        accountant (`str`): `"prv"` or `"rdp"`.
        warm_ups (`tuple[Mechanism, ...]`): The queries of the warm-up stages, in order; empty for DP-SGD alone.
        dp_sgd (`Mechanism`, *optional*): The DP-SGD steps; None if the run ends after the warm-up.
        epsilon_after (`dict[int, float]`):
            Epsilon spent, previous runs included, after some numbers of DP-SGD steps; the keys include 0 and the last.
        central_noise_multiplier (`float`): The noise multiplier of the central-image queries.
        frequency (`FrequencyChoice`): The size of the frequency query.
        previous (`tuple[Mechanism, ...]`): The mechanisms that the counted previous runs have executed.
        noise_without_frequency (`float`, *optional*):
            The noise multiplier that DP-SGD would have without the frequency query, which tells what the query costs.
        unit (`str`, *optional*, defaults to `"record"`): The unit of privacy, `"record"` or `"user"`.
    """

    target_epsilon: float
    delta: float
    accountant: str
    warm_ups: tuple[Mechanism, ...]
    dp_sgd: Mechanism | None
    epsilon_after: dict[int, float]
    central_noise_multiplier: float
    frequency: FrequencyChoice
    previous: tuple[Mechanism, ...] = ()
    noise_without_frequency: float | None = None
    unit: str = RECORD

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Plan":
        """Rebuild a plan from the dictionary that `dataclasses.asdict` made of it, also if it was stored as JSON.

        Args:
            content (`dict`): The fields of a plan.
        """
        mechanisms = {name: tuple(Mechanism(**fields) for fields in content[name]) for name in ("warm_ups", "previous")}
        parts = {
            "dp_sgd": None if content["dp_sgd"] is None else Mechanism(**content["dp_sgd"]),
            "epsilon_after": {int(steps): epsilon for steps, epsilon in content["epsilon_after"].items()},
            "frequency": FrequencyChoice(**content["frequency"]),
        }
        return cls(**{**content, **mechanisms, **parts})

    def put_into(self, config: DPCurriculumConfig) -> DPCurriculumConfig:
        """A config with the numbers that this plan has chosen in the place of "auto".

        Args:
            config (`DPCurriculumConfig`): The hyper-parameters.
        """
        return self.frequency.put_into(replace(config, central_noise_multiplier=self.central_noise_multiplier))

    def epsilon_spent(self, executed: Sequence[Mechanism]) -> float:
        """An upper bound on epsilon after what this run has executed, previous runs included.

        The accountant is slow, so the number of DP-SGD steps is rounded up to the next key of `epsilon_after`: the
        accountant then sees only a few different numbers.

        Args:
            executed (`Sequence[Mechanism]`): What this run has executed; the previous runs are in the plan.
        """
        counted = [mechanism for mechanism in executed if self.dp_sgd is None or mechanism.name != self.dp_sgd.name]
        if self.dp_sgd is not None:
            steps = sum(mechanism.steps for mechanism in executed if mechanism.name == self.dp_sgd.name)
            later = next((after for after in sorted(self.epsilon_after) if after >= steps), None)
            if later is None:
                return self.target_epsilon
            if later > 0:
                counted.append(replace(self.dp_sgd, steps=later))
        return min(self._epsilon(*self.previous, *counted), self.target_epsilon)

    def _epsilon(self, *mechanisms: Mechanism) -> float:
        return compute_epsilon(mechanisms, self.delta, self.accountant)

    def __str__(self) -> str:
        lines = [
            f"target          epsilon {self.target_epsilon:g} at delta {self.delta:g}, for zeroing out one {self.unit}"
        ]
        if self.previous:
            lines.append(f"previous runs   epsilon {self._epsilon(*self.previous):.3f} alone")
        lines += [f"warm-up         {self._in_words(queries)}" for queries in self.warm_ups]
        if not self.warm_ups:
            lines.append("warm-up         none (DP-SGD alone)")
        if self.frequency.reason and self.frequency.num_features == 0:
            lines.append(f"                no frequency features: {self.frequency.reason}")
        elif self.frequency.reason:
            lines.append(f"                {self.frequency.num_features} frequency features: {self.frequency.reason}")
        if self.dp_sgd is None:
            lines.append("DP-SGD          none, the run ends after the warm-up")
        else:
            without = self.noise_without_frequency
            lines.append(
                f"DP-SGD          {self.dp_sgd.steps} steps, noise multiplier {self.dp_sgd.noise_multiplier:.4f}"
                f"{'' if without is None else f' ({without:.4f} without the frequency features)'}, sample rate "
                f"{self.dp_sgd.sample_rate:.4g}, clipping norm {self.dp_sgd.sensitivity:g}"
            )
        included = ", previous runs included" if self.previous else ""
        in_the_end = self.epsilon_after[max(self.epsilon_after)]
        lines.append(f"whole run       epsilon {in_the_end:.3f} by the {self.accountant} accountant{included}")
        return "\n".join(f"  {line}" for line in lines)

    def _in_words(self, queries: Mechanism) -> str:
        number = f"{queries.steps} {'query' if queries.steps == 1 else 'queries'}"
        return (
            f"{queries.name}: {number}, noise multiplier {queries.noise_multiplier:.4g}, sample rate "
            f"{queries.sample_rate:g}, epsilon {self._epsilon(queries):.3f} alone"
        )


def choose_queries(
    config: DPCurriculumConfig,
    info: DatasetInfo,
    previous: Sequence[Mechanism] = (),
    eyes: PublicEyes | None = None,
) -> tuple[DPCurriculumConfig, FrequencyChoice]:
    """Choose the noise of the queries before DP-SGD, and the size of the frequency query.

    Args:
        config (`DPCurriculumConfig`): The hyper-parameters.
        info (`DatasetInfo`): The public description of the data set.
        previous (`Sequence[Mechanism]`, *optional*): The mechanisms of previous runs.
        eyes (`PublicEyes`, *optional*): The public model whose features are queried.

    Returns:
        `tuple[DPCurriculumConfig, FrequencyChoice]`: The hyper-parameters with numbers in the place of `"auto"`, and
        why the frequency query has its size.
    """
    config = replace(config, central_noise_multiplier=choose_central_noise(config, info, previous))
    central = _mechanisms(warm_up_stages(replace(config, frequency_features=0)), info)
    frequency = choose_frequency_features(config, info, [*previous, *central], eyes)
    return frequency.put_into(config), frequency


def make_plan(
    config: DPCurriculumConfig,
    info: DatasetInfo,
    previous: Sequence[Mechanism] = (),
    eyes: PublicEyes | None = None,
) -> Plan:
    """Plan a run: choose the noise of its queries and the size of the frequency query, and calibrate that of DP-SGD.

    Args:
        config (`DPCurriculumConfig`): The hyper-parameters.
        info (`DatasetInfo`): The public description of the data set.
        previous (`Sequence[Mechanism]`, *optional*):
            The mechanisms of previous runs, whose cost the target covers too.
        eyes (`PublicEyes`, *optional*): The public model whose features are queried.

    Returns:
        `Plan`: The mechanisms of the run, with the calibrated noise multiplier.

    Raises:
        InputError:
            If delta is too large, a batch is larger than the data set, the run would train on nothing, or the target
            leaves nothing for one of the stages.
    """
    _check_sizes(config, info)
    config, frequency = choose_queries(config, info, previous, eyes)
    central = _mechanisms(warm_up_stages(replace(config, frequency_features=0)), info)
    stages = warm_up_stages(config, eyes)
    if config.max_train_steps == 0 and not any(
        isinstance(stage, WarmUpStage) and stage.train_steps for stage in stages
    ):
        why = f" (no frequency features: {frequency.reason})" if frequency.reason else ""
        raise InputError(
            f"The run would train on nothing{why}: raise `max_train_steps`, `central_train_steps` or "
            "`frequency_train_steps`, and leave `central_statistic` or `frequency_features` on."
        )
    warm_ups = _mechanisms(stages, info)
    _check_budget(config, previous, warm_ups)
    before = [*previous, *warm_ups]
    dp_sgd, without = None, None
    if config.max_train_steps > 0:
        dp_sgd = _calibrated_dp_sgd(config, info, before)
        if warm_ups != central:
            without = _calibrated_dp_sgd(config, info, [*previous, *central]).noise_multiplier
    epsilon_after = {}
    for steps in sorted({int(step) for step in np.linspace(0, config.max_train_steps, 11)}):
        so_far = [replace(dp_sgd, steps=steps)] if dp_sgd is not None and steps > 0 else []
        epsilon_after[steps] = compute_epsilon([*before, *so_far], config.target_delta, config.accountant)
    return Plan(
        config.target_epsilon,
        config.target_delta,
        config.accountant,
        warm_ups,
        dp_sgd,
        epsilon_after,
        float(config.central_noise_multiplier),
        frequency,
        tuple(previous),
        without,
        info.unit,
    )


def _mechanisms(stages: Sequence[Stage], info: DatasetInfo) -> tuple[Mechanism, ...]:
    return tuple(stage.queries.mechanism(info) for stage in stages if stage.queries is not None)


def _calibrated_dp_sgd(config: DPCurriculumConfig, info: DatasetInfo, before: Sequence[Mechanism]) -> Mechanism:
    """DP-SGD with the smallest noise multiplier that meets the target after the mechanisms before it."""
    # A placeholder noise multiplier, until the calibration finds the real one.
    dp_sgd = dp_sgd_mechanism(
        1.0, config.train_batch_size, info.num_units, config.max_train_steps, config.max_grad_norm
    )
    sigma = calibrate_noise_multiplier(config.target_epsilon, config.target_delta, dp_sgd, before, config.accountant)
    return replace(dp_sgd, noise_multiplier=sigma)


def _check_sizes(config: DPCurriculumConfig, info: DatasetInfo) -> None:
    """Refuse a delta or a batch that does not fit the number of units of privacy."""
    number = info.num_units
    if config.target_delta >= 1 / number:
        raise InputError(
            f"`target_delta` {config.target_delta:g} is not below 1/N = {1 / number:.3g} for {number} {info.unit}s, "
            f"and from 1/N on publishing all of a {info.unit} would count as private: give a smaller one."
        )
    if config.max_train_steps > 0 and config.train_batch_size > number:
        raise InputError(
            f"`train_batch_size` {config.train_batch_size} is larger than the data set ({number} {info.unit}s): give "
            f"at most the number of {info.unit}s."
        )


def _check_budget(config: DPCurriculumConfig, previous: Sequence[Mechanism], warm_ups: Sequence[Mechanism]) -> None:
    """Refuse previous runs and warm-up queries that leave nothing of the target for what follows."""
    new_target = "raise `target_epsilon`, or do not run on these records again"
    fewer_queries = (
        "raise `central_noise_multiplier` or `frequency_noise_multiplier`, or lower `central_sample_rate` or "
        "`central_images_per_class`"
    )
    for what, mechanisms, advice in (
        ("previous runs", previous, new_target),
        ("warm-up queries", warm_ups, fewer_queries),
        ("previous runs and the warm-up queries", [*previous, *warm_ups], new_target),
    ):
        epsilon = compute_epsilon(mechanisms, config.target_delta, config.accountant)
        may_take_all = config.max_train_steps == 0 and mechanisms is not previous  # nothing has to be left for DP-SGD
        if epsilon > config.target_epsilon or (epsilon == config.target_epsilon and not may_take_all):
            raise InputError(
                f"The {what} alone cost epsilon {epsilon:.3f}, which leaves nothing of the target "
                f"{config.target_epsilon:g}: {advice}."
            )
