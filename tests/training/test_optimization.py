"""The learning rate of each step of a stage, also in a run that was interrupted."""

from dataclasses import replace

import pytest
import torch
from diffusers.optimization import get_scheduler

from diffusers_dp_curriculum import DPCurriculumConfig
from diffusers_dp_curriculum.options import declared_options
from diffusers_dp_curriculum.training.optimization import start_dp_sgd
from diffusers_dp_curriculum.training.stages import warm_up_stages
from diffusers_dp_curriculum.training.warm_up import start_warm_up
from helpers import tiny_unet
from helpers.runs import make_trainer


STEPS, PEAK = 10, 3e-4
LR_SCHEDULERS = {option.name: option for option in declared_options(DPCurriculumConfig)}["lr_scheduler"].limits.values
RISING = [name for name in LR_SCHEDULERS if name != "constant"]


def rates(state, steps=STEPS):
    """The learning rate of each of the next steps; PyTorch wants the optimizer to step before the schedule."""
    found = []
    for _ in range(steps):
        found.append(state.optimizer.param_groups[0]["lr"])
        state.optimizer.step()
        state.advance()
    return found


def start(lr_scheduler, lr_warmup_steps, steps=STEPS):
    config = DPCurriculumConfig(
        lr_scheduler=lr_scheduler, lr_warmup_steps=lr_warmup_steps, max_train_steps=steps, learning_rate=PEAK
    )
    return start_dp_sgd(tiny_unet(), config)


def rates_of_diffusers(name, warmup, steps=STEPS):
    optimizer = torch.optim.AdamW(tiny_unet().parameters(), lr=PEAK)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.filterwarnings("error")  # a schedule that is stepped at the wrong time warns
@pytest.mark.parametrize("name", RISING)
@pytest.mark.parametrize("warmup", [1, 2, 4, STEPS - 1, STEPS, STEPS + 5])
def test_the_first_step_moves_and_the_last_of_the_warm_up_has_the_whole_rate(name, warmup):
    found = rates(start(name, warmup))
    rise = min(warmup, STEPS)
    assert found[:rise] == pytest.approx([PEAK * step / warmup for step in range(1, rise + 1)])
    assert all(rate > 0 for rate in found)
    assert found[rise:] == sorted(found[rise:], reverse=True)


@pytest.mark.parametrize("name", LR_SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_without_a_warm_up_the_schedule_is_that_of_diffusers_to_the_last_bit(name, steps):
    assert rates(start(name, 0, steps), steps) == rates_of_diffusers(name, 0, steps)


def test_a_warm_up_stage_has_the_schedule_over_its_own_steps():
    config = DPCurriculumConfig(lr_scheduler="cosine", lr_warmup_steps=2, central_train_steps=6, frequency_features=0)
    (stage,) = warm_up_stages(config)
    config_of_same_length = replace(config, max_train_steps=6, learning_rate=stage.learning_rate)
    expected = rates(start_dp_sgd(tiny_unet(), config_of_same_length), 6)
    assert rates(start_warm_up(tiny_unet(), stage, config), 6) == expected
    assert expected[0] == pytest.approx(stage.learning_rate / 2)
    assert expected[-1] < 0.2 * stage.learning_rate


def test_a_constant_rate_has_no_warm_up():
    assert rates(start("constant", 4)) == [PEAK] * STEPS


@pytest.mark.parametrize("name", LR_SCHEDULERS)
@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("taken", [0, 2, 7])
def test_a_resumed_run_has_the_same_schedule(name, warmup, taken):
    uninterrupted = rates(start(name, warmup))
    interrupted = start(name, warmup)
    rates(interrupted, taken)
    resumed = start(name, warmup)
    resumed.load_state_dict(interrupted.state_dict())
    assert rates(resumed, STEPS - taken) == uninterrupted[taken:]


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_run_steps_its_schedule(tmp_path):
    trainer = make_trainer(tmp_path / "model", lr_scheduler="linear", lr_warmup_steps=2, central_statistic="none")
    found = []
    after_step = trainer._after_step

    def watch(state, *others, **options):
        found.append(state.optimizer.param_groups[0]["lr"])  # of the next step
        return after_step(state, *others, **options)

    trainer._after_step = watch
    trainer.train()
    peak = trainer.args.learning_rate
    assert found == pytest.approx([peak, peak * 2 / 3, peak / 3, 0])
