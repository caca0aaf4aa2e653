"""The short examples, executed with small settings, in the order in which a reader runs them."""

import json
import runpy
from pathlib import Path

import pytest

from diffusers_dp_curriculum import recompute_epsilon


EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_network_of_ones_own_and_its_synthetic_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    small = {"central_train_steps": 2, "central_batch_size": 4, "train_batch_size": 4, "max_train_steps": 2}
    small |= {"frequency_generator_steps": 2, "frequency_train_steps": 2}
    load("custom_unet")["train"](
        str(tmp_path / "model"),
        **small,
        central_noise_multiplier=20.0,
        noise_multiplicity=1,
        num_inference_steps=2,
        accountant="rdp",
    )
    assert f"Published files are in {tmp_path / 'model'}" in capsys.readouterr().out
    statement = json.loads((tmp_path / "model" / "privacy.json").read_text())
    assert recompute_epsilon(statement) <= 10

    dataset = load("generate_dataset")["synthesize"](
        str(tmp_path / "model"), str(tmp_path / "data"), images_per_class=2, num_inference_steps=2
    )
    assert sorted(dataset["label"]) == sorted([*range(10), *range(10)])
    assert json.loads((tmp_path / "data" / "privacy.json").read_text()) == statement


def test_an_audit():
    audit = load("audit")["attack"](steps=2, gradient_canaries=100, image_canaries=100)
    assert audit.claimed_epsilon <= 8
    assert not audit.refuted
