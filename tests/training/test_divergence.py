"""A run whose training diverges stops, says what to change, and publishes nothing."""

import json

import pytest
import torch

from diffusers_dp_curriculum import ClassConditionalPipeline, InputError, TrainingError, generate_dataset
from diffusers_dp_curriculum.finite import is_finite
from diffusers_dp_curriculum.sampling.saved_pipelines import load_pipeline
from helpers import smallest_unet, tiny_scheduler
from helpers.runs import finish, make_trainer


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def released(directory):
    """The names of the mechanisms in the journal of a run, in order."""
    lines = map(json.loads, (directory / "private" / "journal.jsonl").read_text("utf-8").splitlines())
    return [line["mechanism"]["name"] for line in lines if line.get("event") == "release"]


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_a_warm_up_that_diverges_stops_and_its_images_serve_the_next_attempt(tmp_path, rate):
    """With the lower rate the weights are finite numbers for a few steps, and the loss alone tells."""
    options = {"central_train_steps": 4, "checkpointing_steps": 1}
    trainer = make_trainer(tmp_path / "model", central_learning_rate=rate, **options)
    with pytest.raises(TrainingError, match=r"diverged by step \d: lower `central_learning_rate`, and resume"):
        trainer.train()
    with pytest.raises(InputError, match="no trained model"):
        trainer.save_pipeline()
    images = trainer.released_images["central_images"].images
    assert [path.name for path in trainer.checkpoints.all()] == ["checkpoint-0"]

    again = make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **options)
    privacy = finish(again)
    assert torch.equal(again.released_images["central_images"].images, images)
    assert [entry["steps"] for entry in privacy["mechanisms"]] == [5, 4]
    fresh = make_trainer(tmp_path / "fresh", **options)
    assert again.args.central_learning_rate == fresh.args.central_learning_rate


def test_a_learning_rate_that_has_had_an_effect_cannot_change(tmp_path):
    trainer = make_trainer(tmp_path / "model")
    finish(trainer)
    with pytest.raises(InputError, match="was made with other central_learning_rate"):
        make_trainer(tmp_path / "model", resume_from_checkpoint="latest", central_learning_rate=1e-4)


def test_the_changed_learning_rate_is_the_one_that_trains(tmp_path):
    """The optimizer in the checkpoint has the old one."""
    with pytest.raises(TrainingError):
        make_trainer(tmp_path / "model", central_learning_rate=1e30).train()
    trainer, rates = make_trainer(tmp_path / "model", resume_from_checkpoint="latest"), []
    after_step = trainer._after_step

    def note(state, *others, **flags):
        rates.append((state.stage, state.optimizer.param_groups[0]["lr"]))
        return after_step(state, *others, **flags)

    trainer._after_step = note
    trainer.train()
    assert {rate for stage, rate in rates if stage == "central_images"} == {1e-3}


def test_dp_sgd_that_diverges_publishes_nothing(tmp_path):
    trainer = make_trainer(tmp_path / "model", learning_rate=1e30, adam_weight_decay=0.1)
    with pytest.raises(TrainingError, match="DP-SGD diverged in step .*, and its steps count"):
        trainer.train()
    assert not list((tmp_path / "model").glob("*.json"))
    assert trainer.ledger.epsilon() > 0


def test_a_network_whose_samples_are_not_finite_is_not_published(tmp_path):
    """The weights are finite numbers, and too large for what is computed with them."""
    trainer = make_trainer(tmp_path / "model", max_train_steps=0, frequency_features=0)
    trainer.train()
    with torch.no_grad():
        trainer.unet.conv_in.weight.fill_(3e38)
    assert is_finite(trainer.unet)
    with pytest.raises(TrainingError, match="samples of the network are not finite numbers"):
        trainer.save_pipeline()
    assert not list((tmp_path / "model").glob("*.json"))


def pipeline_with(value):
    unet = smallest_unet()
    with torch.no_grad():
        unet.conv_in.weight.fill_(value)
    return ClassConditionalPipeline(unet.eval(), tiny_scheduler())


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_black_images_are_not_written_as_a_data_set(tmp_path, value):
    with pytest.raises(InputError, match="makes images that are not finite numbers"):
        generate_dataset(pipeline_with(value), 2, num_inference_steps=3, output_dir=tmp_path / "images")
    assert not list((tmp_path / "images").rglob("*.parquet"))


def test_a_saved_pipeline_that_has_diverged_is_refused(tmp_path):
    pipeline_with(float("inf")).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="weights of .* are not all finite numbers"):
        load_pipeline(str(tmp_path))


def test_one_number_decides_whether_a_network_is_finite():
    layer = torch.nn.Linear(100, 100)
    torch.nn.init.constant_(layer.weight, torch.finfo(torch.float32).max)
    assert is_finite(layer)
    assert is_finite(torch.nn.ReLU())
    layer.register_buffer("scale", torch.tensor([1.0, float("inf")]))
    assert not is_finite(layer)
