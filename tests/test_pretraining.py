"""Training on public images: no privacy and no claim of it, and a pipeline that a private run can start from."""

import json
import os
import signal

import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline

from diffusers_dp_curriculum import (
    DPCurriculumConfig,
    InputError,
    RunStatus,
    TrainingError,
    load_starting_point,
    pretrain,
    pretraining,
)
from diffusers_dp_curriculum.config import PRETRAINING_OPTIONS
from diffusers_dp_curriculum.options import declared_options
from diffusers_dp_curriculum.pretraining import PublicImages
from diffusers_dp_curriculum.sharing.hub import push_model
from diffusers_dp_curriculum.training.checkpointing import Checkpoints
from helpers import smallest_unet, tiny_records, tiny_scheduler, write_privacy_json
from helpers.runs import make_trainer


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def config(output_dir, **options):
    settings = {"max_train_steps": 3, "train_batch_size": 4, "num_inference_steps": 2}
    return DPCurriculumConfig(str(output_dir), **{**settings, **options})


def run(output_dir, num_classes=3, unet=None, **options):
    """Train on public images; return the status and the network."""
    torch.manual_seed(0)
    unet = smallest_unet(num_classes=num_classes) if unet is None else unet
    images = tiny_records(num_classes=num_classes)
    return pretrain(unet, tiny_scheduler(), config(output_dir, **options), images), unet


def published(directory):
    paths = directory.rglob("*")
    return {path.relative_to(directory).as_posix() for path in paths if path.is_file() and "private" not in path.parts}


def test_the_result_is_a_pipeline_that_claims_no_privacy_and_a_start(tmp_path):
    status, unet = run(tmp_path / "public", hub_dataset_name="alice/photos", hub_license="mit")
    assert status is RunStatus.FINISHED
    assert published(tmp_path / "public") == {
        *(".gitignore", "README.md", "model_index.json", "pipeline.py", "samples.png"),
        *("scheduler/scheduler_config.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    }
    card = (tmp_path / "public" / "README.md").read_text()
    for words in (
        "**This model is NOT private.**",
        "on 60 images",
        "- alice/photos\n",
        "license: mit",
        "0 = class 0, ",
    ):
        assert words in card
    for words in ("-differentially private", "epsilon", "secure_rng", "central_"):
        assert words not in card.replace("adam_epsilon", "")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "public", trust_remote_code=True)
    assert len(loaded(["class 1", "class 2"], num_inference_steps=2).images) == 2
    assert all(torch.equal(*pair) for pair in zip(loaded.unet.parameters(), unet.parameters(), strict=True))
    with pytest.raises(InputError, match=r"has no privacy\.json and is not finished"):
        push_model(tmp_path / "public", "alice/public")

    started, noise_scheduler = load_starting_point(str(tmp_path / "public"), tiny_records(channels=3).info)
    assert torch.equal(started.class_embedding.weight, unet.class_embedding.weight)  # the names are the same
    assert noise_scheduler.config.prediction_type == "v_prediction"


def test_images_without_labels_make_a_pipeline_of_diffusers(tmp_path):
    assert run(tmp_path / "public", num_classes=None, max_train_steps=1)[0] is RunStatus.FINISHED
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path / "public"), DDPMPipeline)
    assert "DiffusionPipeline.from_pretrained(" in (tmp_path / "public" / "README.md").read_text()


def test_the_images_are_those_that_were_given():
    records = tiny_records()
    images, labels = PublicImages(records.images, records.labels).batch(torch.tensor([5, 1]))
    assert torch.equal(images, records.images[[5, 1]].float() / 255)
    assert labels.tolist() == [2, 1]


def test_a_training_that_was_interrupted_ends_with_the_same_weights(tmp_path, monkeypatch, messages):
    _, whole = run(tmp_path / "whole")
    batch, drawn = PublicImages.batch, []

    def with_sigterm(images, indices):
        drawn.append(indices)
        if len(drawn) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(images, indices)

    with monkeypatch.context() as patched:
        patched.setattr(PublicImages, "batch", with_sigterm)
        assert run(tmp_path / "public")[0] is RunStatus.TERMINATED
    assert "Interrupted after 2 steps: resume with the same settings" in messages.text
    assert published(tmp_path / "public") == {".gitignore"}
    other = smallest_unet()  # its weights are replaced by those of the checkpoint
    status, resumed = run(tmp_path / "public", unet=other, resume_from_checkpoint="latest")
    assert status is RunStatus.FINISHED
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_training_that_diverged_begins_again_with_a_lower_learning_rate(tmp_path):
    with pytest.raises(TrainingError, match="on public images diverged by step 2: lower `learning_rate`, and resume"):
        run(tmp_path / "public", learning_rate=1e30)
    checkpoints = tmp_path / "public" / "private" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-0"]
    assert run(tmp_path / "public", resume_from_checkpoint="latest")[0] is RunStatus.FINISHED


def test_a_private_run_does_not_continue_it(tmp_path):
    run(tmp_path / "public", max_train_steps=1)
    with pytest.raises(InputError, match="was made with other kind of images"):
        make_trainer(tmp_path / "public", resume_from_checkpoint="latest")


def test_it_does_not_continue_a_private_run(tmp_path, monkeypatch):
    """Also where all else is the same, as in this checkpoint."""
    run(tmp_path / "model", max_train_steps=1)
    (path,) = (tmp_path / "model" / "private" / "checkpoints").glob("checkpoint-1/checkpoint.json")
    content = json.loads(path.read_text())
    content["identity"].pop("kind of images")
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="was made with other kind of images"):
        run(tmp_path / "model", max_train_steps=1, resume_from_checkpoint="latest")


def test_what_comes_from_sensitive_records_is_not_continued_as_public(tmp_path):
    DDPMPipeline(smallest_unet(num_classes=None), tiny_scheduler()).save_pretrained(tmp_path / "model")
    write_privacy_json(tmp_path / "model" / "privacy.json")
    unet, _ = load_starting_point(str(tmp_path / "model"), tiny_records().info)
    with pytest.raises(InputError, match="has learned from sensitive records, so that what is made of it is not publi"):
        run(tmp_path / "public", unet=unet, pretrained_model_name_or_path=str(tmp_path / "model"))
    trained = make_trainer(tmp_path / "run", central_train_steps=0, max_train_steps=1)
    trained.train()
    with pytest.raises(InputError, match="This UNet has learned from sensitive records in another run"):
        run(tmp_path / "public", unet=trained.unet)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_train_steps": 0}, "`max_train_steps` is 0: give at least 1"),
        ({"unet": smallest_unet(num_classes=2)}, "The UNet has num_class_embeds=3 where the data set needs 4"),
        ({"unet": smallest_unet(channels=3)}, "The images have 1 channels, and the UNet takes 3"),
        ({"num_inference_steps": 2000}, "`num_inference_steps` is 2000: give 1 to 1000"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(Checkpoints, "save", lambda *_: pytest.fail("a checkpoint is written"))
    with pytest.raises(InputError, match=message):
        run(tmp_path / "public", **options)
    assert not (tmp_path / "public").exists()


def test_its_options_are_options_of_a_run():
    assert set(PRETRAINING_OPTIONS) <= {option.name for option in declared_options(DPCurriculumConfig)}
    assert pretraining.pretrain is pretrain
