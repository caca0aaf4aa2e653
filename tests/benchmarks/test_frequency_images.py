"""The benchmark of the generator alone, through the eyes of a public model."""

import sys

import pytest

from helpers import REPOSITORY
from helpers.vision_models import save_vision_model, tiny_dinov2


sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import frequency_images as benchmark
from diffusers_dp_curriculum.training import auxiliary_generator


@pytest.mark.parametrize("features", ["random", "of a model"])
def test_it_prints_a_row_for_each_query(features, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(auxiliary_generator, "BATCH_SIZE", 20)
    monkeypatch.setattr(auxiliary_generator, "NUM_IMAGES", 20)
    flags = ["--data", "digits", "--profile", "smoke", "--train_steps", "2", "--output", str(tmp_path / "output")]
    if features == "random":
        words, flags = "20 random ones, kernel widths [3.0]", [*flags, "--num_features", "20", "--kernel_widths", "3"]
    else:
        words = "32 of a local model"
        flags += ["--feature_extractor", save_vision_model(tiny_dinov2(), tmp_path / "eyes")]
    benchmark.main([*flags, "--noise_multipliers", "5", "10"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| 5", "| 10"]
    assert all(words in row for row in rows[1:])
    assert (tmp_path / "output" / "reference.pt").exists()
