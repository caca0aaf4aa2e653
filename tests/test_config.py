"""The options of a run are declared once and checked whenever a config is made, and nothing shows the token."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path

import numpy as np
import pytest

from diffusers_dp_curriculum import DPCurriculumConfig, InputError
from diffusers_dp_curriculum.commands.train import ScriptArguments
from diffusers_dp_curriculum.options import declared_options


OPTIONS = [*declared_options(ScriptArguments), *declared_options(DPCurriculumConfig)]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_explained_in_a_group_and_allows_its_default(option):
    assert option.help.endswith((".", ")"))
    assert option.group
    option.check(option.default)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.limits], ids=lambda option: option.name)
def test_no_option_takes_what_is_out_of_its_range(option):
    for value in (float("nan"), -1, "steep"):
        with pytest.raises(InputError, match=f"^`{option.name}` is "):
            option.check(value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_ema": "no"}, "`use_ema` is 'no': give True or False"),
        ({"max_train_steps": 2.0}, "`max_train_steps` is 2.0: give a whole number"),
        ({"learning_rate": "fast"}, "`learning_rate` is 'fast': give a number above 0"),
        ({"checkpoints_total_limit": 0}, "`checkpoints_total_limit` is 0: give at least 1"),
        ({"output_dir": 3}, "`output_dir` is 3: give text"),
        ({"output_dir": ""}, "`output_dir` is empty"),
        ({"hub_model_id": ""}, "`hub_model_id` is empty: give text, or leave it out"),
        ({"resume_from_checkpoint": 3}, "`resume_from_checkpoint` is 3: give text"),
        (
            {"trainable": "*attention"},
            '`trainable` is "\\*attention", which is no regular expression .*: give all, attention',
        ),
        ({"lora_rank": 0}, "`lora_rank` is 0: give at least 1"),
        ({"target_epsilon": None}, "`target_epsilon` is None: give a number above 0"),
    ],
)
def test_a_config_is_checked_when_it_is_made_also_from_another(changes, message):
    with pytest.raises(InputError, match=message):
        DPCurriculumConfig(**changes)
    with pytest.raises(InputError, match=message):
        replace(DPCurriculumConfig(), **changes)


def test_true_resumes_from_the_last_checkpoint_as_in_transformers():
    for given, which in ((True, "latest"), ("True", "latest"), (False, None), (None, None), ("latest", "latest")):
        assert DPCurriculumConfig(resume_from_checkpoint=given).resume_from_checkpoint == which


def test_numbers_of_numpy_become_numbers_of_python():
    config = DPCurriculumConfig(max_train_steps=np.int64(7), target_epsilon=np.float64(8), use_ema=np.bool_(False))
    assert (config.max_train_steps, config.target_epsilon, config.use_ema) == (7, 8.0, False)
    assert type(config.max_train_steps) is int
    json.dumps(config.hyper_parameters())


def test_a_tilde_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("USERPROFILE", "/home/alice")
    assert DPCurriculumConfig(output_dir="~/model").output_dir == str(Path("/home/alice/model"))


def test_a_config_cannot_be_changed():
    config = DPCurriculumConfig()
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'target_epsilon'"):
        config.target_epsilon = -5.0


def test_the_token_stays_with_the_config_and_shows_nowhere():
    config = DPCurriculumConfig(hub_token="hf_secret")
    for same in (config, replace(config, seed=1), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert same.token == "hf_secret"
        assert "hf_secret" not in repr((same, str(same), asdict(same), same.hyper_parameters()))
    assert replace(config, hub_token=None).token is None
    assert DPCurriculumConfig().token is None


def test_hyper_parameters_are_the_options_that_change_the_result():
    parameters = DPCurriculumConfig(prior_runs=["secret/path"], hub_model_id="me/name").hyper_parameters()
    assert {"target_epsilon", "seed", "learning_rate"} <= set(parameters)
    assert not {"output_dir", "prior_runs", "hub_model_id", "hub_token", "max_physical_batch_size"} & set(parameters)
