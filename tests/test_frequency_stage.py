"""Whole runs with frequency features: what is written, what is counted, and how they are resumed."""

import shutil

import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline
from huggingface_hub import ModelCard

from diffusers_dp_curriculum import DPCurriculumConfig, FrequencyImageDataset, InputError, StorageError
from diffusers_dp_curriculum.commands.train import parse_arguments
from diffusers_dp_curriculum.mechanisms.central_images import CentralImageQueries
from diffusers_dp_curriculum.mechanisms.frequency_features import FrequencyFeatureQuery
from helpers import PUBLISHED, smallest_unet, tiny_records, tiny_unet
from helpers.runs import finish, interrupted, make_trainer


pytestmark = pytest.mark.usefixtures("fresh_accelerator", "small_batches")

FREQUENCY = {
    "frequency_features": 40,
    "frequency_noise_multiplier": 3.0,
    "frequency_generator_steps": 3,
    "frequency_train_steps": 2,
    "frequency_batch_size": 4,
}


def entries(privacy):
    return [(entry["name"], entry["steps"], entry["sample_rate"]) for entry in privacy["mechanisms"]]


def test_a_run_queries_trains_publishes_and_says_so(tmp_path):
    trainer = make_trainer(tmp_path / "model", tiny_unet(), save_images_steps=5, **FREQUENCY)
    plan = trainer.describe_plan()
    privacy = finish(trainer)
    assert entries(privacy)[:2] == [("central_images_mean", 5, 0.5), ("frequency_features", 1, 1.0)]
    assert entries(privacy)[2][:2] == ("dp_sgd", 4)
    assert 9.9 <= privacy["epsilon"] <= 10
    published = sorted(
        str(path.relative_to(trainer.output_dir))
        for path in trainer.output_dir.rglob("*")
        if path.is_file() and "private" not in path.parts
    )
    assert published == sorted([".gitignore", "frequency_images.png", *PUBLISHED])
    card = ModelCard.load(trainer.output_dir / "README.md").text
    assert "the central images (DP means), the frequency features and training by DP-SGD" in card
    assert "![frequency images](frequency_images.png)" in card
    assert "| frequency_features | 40 |" in card
    images = FrequencyImageDataset.load_from_disk(trainer.paths.released("frequency_images"))
    assert (len(images), images.class_names) == (60 + 3 * 10, ["class 0", "class 1", "class 2"])
    assert "frequency_images.png" in trainer.summary()
    pictures = sorted(path.name for path in trainer.paths.samples.iterdir())
    assert pictures == ["step-10.png", "step-5.png"]  # of the generator in its second step, and of DP-SGD
    assert "frequency_features: 1 query, noise multiplier 3, sample rate 1" in plan
    with_query, without = trainer.plan.dp_sgd.noise_multiplier, trainer.plan.noise_without_frequency
    assert with_query > without
    assert f"noise multiplier {with_query:.4f} ({without:.4f} without the frequency features)" in plan


@pytest.mark.parametrize("after", [4, 6, 7, 8, 9])  # of 3 + 3 + 2 steps before DP-SGD
def test_an_interrupted_run_repeats_no_query_and_ends_with_the_same_weights(tmp_path, monkeypatch, after):
    weights = []
    for name in ("one", "two"):
        torch.manual_seed(0)
        options = {**FREQUENCY, "insecure_noise_seed": 1, "checkpointing_steps": 2}
        unet = smallest_unet()
        if name == "two":
            interrupted(tmp_path / name, after, unet=unet, **options)
            unet = smallest_unet()  # other initial weights, which the checkpoint replaces
            for queries in (CentralImageQueries, FrequencyFeatureQuery):
                monkeypatch.setattr(queries, "release", lambda *_: pytest.fail("queried a second time"))
        trainer = make_trainer(tmp_path / name, unet=unet, resume_from_checkpoint="latest", **options)
        if after < 9:
            monkeypatch.setattr(trainer, "_train_by_dp_sgd", lambda: True)
        trainer.train()
        weights.append(trainer.unet.state_dict())
        assert entries(trainer.ledger.statement(60).to_dict())[:2] == [
            ("central_images_mean", 5, 0.5),
            ("frequency_features", 1, 1.0),
        ]
    if after < 9:
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_early_checkpoint_does_not_lead_to_a_second_query(tmp_path, monkeypatch):
    """What was released is kept beside the checkpoints, and is paid for once, wherever the run is resumed."""
    options = {**FREQUENCY, "checkpointing_steps": 2}
    interrupted(tmp_path / "model", 7, **options)  # in the warm-up on frequency images
    monkeypatch.setattr(FrequencyFeatureQuery, "release", lambda *_: pytest.fail("queried a second time"))
    trainer = make_trainer(tmp_path / "model", resume_from_checkpoint="checkpoint-2", **options)
    assert [name for name, steps, _ in entries(finish(trainer)) for _ in range(steps)] == [
        *["central_images_mean"] * 5,
        "frequency_features",
        *["dp_sgd"] * 4,
    ]


def test_images_that_are_gone_are_made_anew_from_an_earlier_checkpoint(tmp_path):
    options = {**FREQUENCY, "checkpointing_steps": 2}
    interrupted(tmp_path / "model", 7, **options)
    shutil.rmtree(tmp_path / "model" / "private" / "frequency_images")
    with pytest.raises(StorageError, match="frequency_images is missing: restore it, or resume from an earlier"):
        make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **options).train()
    trainer = make_trainer(tmp_path / "model", resume_from_checkpoint="checkpoint-4", **options)
    assert [entry["steps"] for entry in finish(trainer)["mechanisms"]] == [5, 1, 4]


def test_a_release_that_was_not_written_to_its_end_is_not_used(tmp_path):
    options = {**FREQUENCY, "checkpointing_steps": 2, "target_epsilon": 20.0}
    interrupted(tmp_path / "model", 4, **options)
    (tmp_path / "model" / "private" / "frequency_features" / "frequency_features.json").unlink()
    trainer = make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **options)
    trainer.train()
    assert [entry.steps for entry in trainer.ledger.mechanisms if entry.name == "frequency_features"] == [2]


@pytest.mark.parametrize("options", [FREQUENCY, {**FREQUENCY, "central_statistic": "none"}, {"frequency_features": 0}])
def test_a_run_without_dp_sgd_ends_after_the_warm_up(tmp_path, options):
    trainer = make_trainer(tmp_path / "model", tiny_unet(), max_train_steps=0, **options)
    assert "DP-SGD          none, the run ends after the warm-up" in trainer.describe_plan()
    privacy = finish(trainer)
    assert "dp_sgd" not in [name for name, *_ in entries(privacy)]
    assert 0 < privacy["epsilon"] < 10
    assert privacy["epsilon"] == pytest.approx(trainer.plan.epsilon_after[0])
    card = ModelCard.load(trainer.output_dir / "README.md").text
    assert "training by DP-SGD" not in card
    assert "The run ended after the warm-up" in card
    assert "dp-sgd" not in ModelCard.load(trainer.output_dir / "README.md").data.tags
    pipeline = DiffusionPipeline.from_pretrained(trainer.output_dir, trust_remote_code=True)
    images = pipeline(class_labels=[0, 1], num_inference_steps=2).images
    assert images[0].size == (8, 8)
    again = make_trainer(tmp_path / "model", tiny_unet(), max_train_steps=0, resume_from_checkpoint="latest", **options)
    assert finish(again) == privacy


def test_without_dp_sgd_the_query_may_take_the_whole_budget(tmp_path):
    """A noise multiplier that is chosen meets the target, and leaves nothing of it."""
    options = {**FREQUENCY, "frequency_noise_multiplier": "auto", "target_epsilon": 1.0}
    trainer = make_trainer(tmp_path / "model", max_train_steps=0, **options, central_noise_multiplier=30.0)
    assert 0.99 < trainer.plan.epsilon_after[0] <= 1
    privacy = finish(trainer)
    assert 0.99 < privacy["epsilon"] <= 1


def test_there_must_be_something_to_train_on(tmp_path):
    for options in (
        {"central_statistic": "none"},
        {"central_train_steps": 0},
        {**FREQUENCY, "frequency_train_steps": 0, "central_train_steps": 0},
    ):
        with pytest.raises(
            InputError, match="would train on nothing.*: raise `max_train_steps`, `central_train_steps`"
        ):
            make_trainer(tmp_path / "model", max_train_steps=0, **options)
    with pytest.raises(InputError, match=r"no frequency features: with 20 records a class"):
        make_trainer(tmp_path / "model", max_train_steps=0, central_statistic="none")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("num_classes", [None, 2, 30])
def test_central_images_can_be_left_out_and_classes_can_be_few_or_many(tmp_path, num_classes):
    trainer = make_trainer(
        tmp_path / "model",
        tiny_unet(num_classes, channels=3),
        tiny_records(60, num_classes, channels=3),
        central_statistic="none",
        max_train_steps=1,
        **FREQUENCY,
    )
    privacy = finish(trainer)
    assert [name for name, *_ in entries(privacy)] == ["frequency_features", "dp_sgd"]
    assert not (trainer.output_dir / "central_images.png").exists()
    if num_classes is None:
        assert isinstance(DiffusionPipeline.from_pretrained(trainer.output_dir), DDPMPipeline)


def test_images_larger_than_32_pixels_are_trained_on_at_full_size(tmp_path):
    trainer = make_trainer(
        tmp_path / "model",
        smallest_unet(size=40),
        tiny_records(size=40),
        max_train_steps=1,
        **FREQUENCY,
    )
    finish(trainer)
    assert trainer.released["frequency_images"].images.shape[1:] == (1, 32, 32)


def test_the_stage_is_off_where_it_cannot_help_and_the_plan_says_why(tmp_path):
    trainer = make_trainer(tmp_path / "model")
    assert trainer.args.frequency_features == 0
    assert [stage.name for stage in trainer.stages] == ["central_images"]
    expected = "no frequency features: with 20 records a class the noise on them would be too large"
    assert expected in trainer.describe_plan()


def test_what_is_chosen_is_what_a_resumed_run_has(tmp_path):
    """Also if the rule had changed by then: the choice is part of the plan in the checkpoint."""
    options = {**FREQUENCY, "frequency_noise_multiplier": "auto"}
    interrupted(tmp_path / "model", 2, **options)
    first = make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **options)
    assert first.args.frequency_noise_multiplier == first.plan.frequency.noise_multiplier
    privacy = finish(first)
    assert privacy["mechanisms"][1]["noise_multiplier"] == first.plan.frequency.noise_multiplier


def test_flags_take_auto_or_a_number():
    _, config = parse_arguments(["--preset", "digits", "--frequency_features", "auto"])
    assert (config.frequency_features, config.frequency_noise_multiplier) == ("auto", "auto")
    _, config = parse_arguments(["--frequency_features", "400", "--frequency_noise_multiplier", "2.5"])
    assert (config.frequency_features, config.frequency_noise_multiplier) == (400, 2.5)
    with pytest.raises(SystemExit):
        parse_arguments(["--frequency_features", "many"])
    with pytest.raises(InputError, match="`frequency_features` is 401: give auto, or 0 or an even number above it"):
        DPCurriculumConfig(frequency_features=401)
    with pytest.raises(InputError, match="`frequency_features` is 'some': give a whole number"):
        DPCurriculumConfig(frequency_features="some")
    with pytest.raises(InputError, match="`frequency_noise_multiplier` is 0: give auto, or a number above 0"):
        DPCurriculumConfig(frequency_noise_multiplier=0)
