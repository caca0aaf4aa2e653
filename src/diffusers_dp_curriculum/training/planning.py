"""Plans what a run will do and cost, from public values, before any sensitive record is read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import DPCurriculumConfig
from ..data.dataset_info import DatasetInfo
from ..errors import InputError
from ..mechanisms.dp_sgd import dp_sgd_mechanism
from ..privacy.accounting import Mechanism, calibrate_noise_multiplier, compute_epsilon
from .stages import warm_up_stages


@dataclass(frozen=True)
class Plan:
    """The mechanisms of a run, with a DP-SGD noise multiplier for which all of them together meet the target.

    Args:
        target_epsilon (`float`): The budget of the whole run together with the previous runs that it counts.
        delta (`float`): Delta of the whole run.
        accountant (`str`): `"prv"` or `"rdp"`.
        warm_ups (`tuple[Mechanism, ...]`): The queries of the warm-up stages, in order; empty for DP-SGD alone.
        dp_sgd (`Mechanism`): The DP-SGD steps.
        epsilon_after (`dict[int, float]`):
            Epsilon spent, previous runs included, after some numbers of DP-SGD steps; the keys include 0 and the last.
        previous (`tuple[Mechanism, ...]`): The mechanisms that the counted previous runs have executed.
    """

    target_epsilon: float
    delta: float
    accountant: str
    warm_ups: tuple[Mechanism, ...]
    dp_sgd: Mechanism
    epsilon_after: dict[int, float]
    previous: tuple[Mechanism, ...] = ()

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Plan":
        """Rebuild a plan from the dictionary that `dataclasses.asdict` made of it, also if it was stored as JSON.

        Args:
            content (`dict`): The fields of a plan.
        """
        mechanisms = {name: tuple(Mechanism(**fields) for fields in content[name]) for name in ("warm_ups", "previous")}
        epsilon_after = {int(steps): epsilon for steps, epsilon in content["epsilon_after"].items()}
        dp_sgd = Mechanism(**content["dp_sgd"])
        return cls(**{**content, **mechanisms, "dp_sgd": dp_sgd, "epsilon_after": epsilon_after})

    def epsilon_spent(self, executed: Sequence[Mechanism]) -> float:
        """An upper bound on epsilon after what this run has executed, previous runs included.

        The accountant is slow, so the number of DP-SGD steps is rounded up to the next key of `epsilon_after`: the
        accountant then sees only a few different numbers.

        Args:
            executed (`Sequence[Mechanism]`): What this run has executed; the previous runs are in the plan.
        """
        steps = sum(mechanism.steps for mechanism in executed if mechanism.name == self.dp_sgd.name)
        others = [mechanism for mechanism in executed if mechanism.name != self.dp_sgd.name]
        later = next((after for after in sorted(self.epsilon_after) if after >= steps), None)
        if later is None:
            return self.target_epsilon
        dp_sgd = [replace(self.dp_sgd, steps=later)] if later > 0 else []
        return min(self._epsilon(*self.previous, *others, *dp_sgd), self.target_epsilon)

    def _epsilon(self, *mechanisms: Mechanism) -> float:
        return compute_epsilon(mechanisms, self.delta, self.accountant)

    def __str__(self) -> str:
        previous, included = "", ""
        if self.previous:
            previous = f"  previous runs   epsilon {self._epsilon(*self.previous):.3f} alone\n"
            included = ", previous runs included"
        warm_ups = "".join(
            f"  warm-up         {queries.name}: {queries.steps} queries, noise multiplier "
            f"{queries.noise_multiplier:g}, sample rate {queries.sample_rate:g}, epsilon "
            f"{self._epsilon(queries):.3f} alone\n"
            for queries in self.warm_ups
        )
        if not self.warm_ups:
            warm_ups = "  warm-up         none (DP-SGD alone)\n"
        return (
            f"  target          epsilon {self.target_epsilon:g} at delta {self.delta:g}, for zeroing out one record\n"
            f"{previous}"
            f"{warm_ups}"
            f"  DP-SGD          {self.dp_sgd.steps} steps, noise multiplier {self.dp_sgd.noise_multiplier:.4f}, sample "
            f"rate {self.dp_sgd.sample_rate:.4g}, clipping norm {self.dp_sgd.sensitivity:g}\n"
            f"  whole run       epsilon {self.epsilon_after[self.dp_sgd.steps]:.3f} by the {self.accountant} accountant"
            f"{included}"
        )


def make_plan(
    config: DPCurriculumConfig,
    info: DatasetInfo,
    previous: Sequence[Mechanism] = (),
) -> Plan:
    """Plan a run and calibrate its DP-SGD noise.

    Args:
        config (`DPCurriculumConfig`): The hyper-parameters.
        info (`DatasetInfo`): The public description of the data set.
        previous (`Sequence[Mechanism]`, *optional*):
            The mechanisms of previous runs, whose cost the target covers too.

    Returns:
        `Plan`: The mechanisms of the run, with the calibrated noise multiplier.

    Raises:
        InputError: If delta is too large, a batch is larger than the data set, or the target leaves nothing for DP-SGD.
    """
    dataset_size = info.num_records
    if config.target_delta >= 1 / dataset_size:
        raise InputError(
            f"`target_delta` {config.target_delta:g} is not below 1/N = {1 / dataset_size:.3g}, and from 1/N on "
            "publishing a whole record would count as private: give a smaller one."
        )
    if config.train_batch_size > dataset_size:
        raise InputError(
            f"`train_batch_size` {config.train_batch_size} is larger than the data set ({dataset_size} records): give "
            "at most the number of records."
        )
    warm_ups = tuple(stage.queries.mechanism(info) for stage in warm_up_stages(config))
    before = [*previous, *warm_ups]
    if previous:
        _check_budget_remains(config, previous, before)
    # A placeholder noise multiplier, until the calibration below finds the real one.
    dp_sgd = dp_sgd_mechanism(1.0, config.train_batch_size, dataset_size, config.max_train_steps, config.max_grad_norm)
    sigma = calibrate_noise_multiplier(config.target_epsilon, config.target_delta, dp_sgd, before, config.accountant)
    dp_sgd = replace(dp_sgd, noise_multiplier=sigma)
    milestones = {int(step) for step in np.linspace(0, config.max_train_steps, 11)}
    epsilon_after = {
        steps: compute_epsilon(
            before + ([replace(dp_sgd, steps=steps)] if steps else []), config.target_delta, config.accountant
        )
        for steps in sorted(milestones)
    }
    return Plan(
        config.target_epsilon,
        config.target_delta,
        config.accountant,
        warm_ups,
        dp_sgd,
        epsilon_after,
        tuple(previous),
    )


def _check_budget_remains(
    config: DPCurriculumConfig, previous: Sequence[Mechanism], before: Sequence[Mechanism]
) -> None:
    """Refuse previous runs that, alone or with the warm-up queries, use up the whole target."""
    for what, mechanisms in (("previous runs", previous), ("previous runs and the warm-up queries", before)):
        epsilon = compute_epsilon(mechanisms, config.target_delta, config.accountant)
        if epsilon >= config.target_epsilon:
            raise InputError(
                f"The {what} alone cost epsilon {epsilon:.3f}, which leaves nothing of the target "
                f"{config.target_epsilon:g} for DP-SGD: raise `target_epsilon`, or do not run on these records again."
            )
