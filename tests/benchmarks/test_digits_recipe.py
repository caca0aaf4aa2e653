"""The quality of the default recipe, over three seeds.

`pytest -m slow tests/benchmarks/test_digits_recipe.py` takes half an hour.
"""

import sys

import numpy as np
import pytest

from helpers import REPOSITORY


sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import digits


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_digits_are_good_and_better_than_dp_sgd_alone(tmp_path):
    results = [digits.measure(arm, seed, tmp_path) for seed in range(3) for arm in ("curriculum", "dp_sgd_alone")]
    curriculum = [result for result in results if result["arm"] == "curriculum"]
    alone = [result for result in results if result["arm"] == "dp_sgd_alone"]
    for ours, theirs in zip(curriculum, alone, strict=True):
        assert ours["epsilon"] <= 10
        assert theirs["epsilon"] <= 10
        assert ours["accuracy"] >= 0.88
        assert ours["frechet_distance"] < theirs["frechet_distance"]
        assert ours["seconds"] < 360
    assert np.mean([ours["accuracy"] for ours in curriculum]) > np.mean([theirs["accuracy"] for theirs in alone])


def test_real_digits_score_as_real_digits_do():
    """Check the measures themselves, on real digits and on inverted ones."""
    train = digits.load_image_dataset(dataset_name="digits")
    images, labels = train.images.float() / 255, train.labels.numpy()
    assert digits.forest_accuracy(images, labels) >= 0.96
    assert digits.pixel_frechet_distance(images) < 0.15
    assert digits.pixel_frechet_distance(1 - images) > 10
