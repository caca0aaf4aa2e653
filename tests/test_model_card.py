"""What the card says of the budget."""

import json
import re

import pytest

from diffusers_dp_curriculum import DPCurriculumConfig
from diffusers_dp_curriculum.model_card import make_model_card
from helpers import write_privacy_json


@pytest.fixture
def card(tmp_path):
    def make(**changes):
        privacy = json.loads(write_privacy_json(tmp_path / "privacy.json", **changes).read_text())
        return make_model_card(privacy, DPCurriculumConfig(), {"resolution": 8}, ["a", "b"], True).text

    return make


def test_no_figure_of_the_budget_is_rounded_down(card):
    text = card(epsilon=2.98761, delta=1.23444e-5)
    assert re.findall(r"\(([\d.]+), ([\d.e-]+)\)-differentially", text) == [("2.988", "1.235e-05")]
    assert "p <= exp(2.988) p' + 1.235e-05." in text


def test_a_mechanism_of_ones_own_is_named(card):
    mine = {"name": "class_histogram", "noise_multiplier": 5.0, "sample_rate": 1.0, "steps": 1, "sensitivity": 1.0}
    assert "covers everything that read the data: class_histogram." in card(mechanisms=[mine])
