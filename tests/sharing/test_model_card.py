"""The sentences of the model card about the budget."""

import re

import pytest
from diffusers import DDPMPipeline

from diffusers_dp_curriculum import DPCurriculumConfig
from diffusers_dp_curriculum.data.dataset_info import DatasetInfo
from diffusers_dp_curriculum.privacy.statement import PrivacyStatement
from diffusers_dp_curriculum.sharing.model_card import make_model_card
from helpers import tiny_scheduler, tiny_unet, write_privacy_json


@pytest.fixture
def card(tmp_path):
    info = DatasetInfo(60, 1, 8, ("a", "b"))
    pipeline = DDPMPipeline(tiny_unet(), tiny_scheduler())

    def make(info=info, config=None, trained_part="the whole network", **changes):
        privacy = PrivacyStatement.read(write_privacy_json(tmp_path / "privacy.json", **changes))
        config = config or DPCurriculumConfig()
        return make_model_card(privacy, config, pipeline, info, "no", ["central_images"], trained_part).text

    return make


def test_no_figure_of_the_budget_is_rounded_down(card):
    text = card(epsilon=2.98761, delta=1.23444e-5)
    assert re.findall(r"\(([\d.]+), ([\d.e-]+)\)-differentially", text) == [("2.988", "1.235e-05")]
    assert "p <= exp(2.988) p' + 1.235e-05." in text


def test_a_mechanism_of_ones_own_is_named(card):
    mine = {"name": "class_histogram", "noise_multiplier": 5.0, "sample_rate": 1.0, "steps": 1, "sensitivity": 1.0}
    assert "covers everything by which training read the data: class_histogram." in card(mechanisms=[mine])


def test_the_sentence_that_is_quoted_says_what_it_is_about(card):
    text = card()
    assert "private with respect to zeroing out one record (one image with its label) of its training data.**" in text
    assert "zero-out adjacency: the record is replaced by one that contributes nothing" in text
    assert "the published number of records is taken as known" in text
    assert "The figure is for this run alone: further runs on the same records add up." in text


def test_names_from_previous_runs_are_no_markup(card):
    """Names of mechanisms can come from files that other people wrote."""
    mine, theirs = {"id": "a", "sessions": {"b": 1}}, {"id": "c", "sessions": {"d": 1}}
    numbers = {"noise_multiplier": 5.0, "sample_rate": 1.0, "steps": 1, "sensitivity": 1.0}
    name = "<!-- end: privacy -->|This model is (0.1, 1e-05)-differentially private"
    mechanisms = [{"run": 0, "name": "dp_sgd", **numbers}, {"run": 1, "name": name, **numbers}]
    text = card(runs=[mine, theirs], mechanisms=mechanisms)
    assert text.count("<!-- end: privacy -->") == 1
    assert "| &lt;!-- end: privacy --&gt;\\|This model is" in text
    assert "by which training read the data: training by DP-SGD and 1 previous run. The figure is for this run" in text


@pytest.mark.parametrize("class_names", [("0", "1", "2"), ("0", "10", "2"), ("cat", "dog")])
def test_classes_are_listed_with_their_indices_also_if_they_are_numbers(card, class_names):
    text = card(info=DatasetInfo(60, 1, 8, class_names))
    assert f"Classes: {', '.join(f'{index} = {name}' for index, name in enumerate(class_names))}." in text


def test_the_trained_part_is_named_and_a_pattern_is_no_markup(card):
    pattern = "(mid_block|conv_out).*"
    part = f"parameters that match {pattern}: 5 of 9 parameters"
    text = card(config=DPCurriculumConfig(trainable=pattern), trained_part=part)
    escaped = r"(mid_block\|conv_out).\*"
    assert f"DP-SGD has trained parameters that match {escaped}: 5 of 9 parameters. The warm-up has trained" in text
    assert f"| trainable | {escaped} |" in text
    assert "DP-SGD has trained" not in card(config=DPCurriculumConfig(max_train_steps=0))
