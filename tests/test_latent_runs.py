"""Whole runs on the latents of a public autoencoder: what they release, publish, refuse and resume."""

import json
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline, VQModel
from huggingface_hub import HfApi

from diffusers_dp_curriculum import (
    ClassConditionalPipeline,
    DPCurriculumTrainer,
    InputError,
    RunStatus,
    build_scheduler,
    cli,
    generate_dataset,
    load_starting_point,
    pretrain,
)
from diffusers_dp_curriculum.data.latents import LatentDataset
from diffusers_dp_curriculum.mechanisms.dp_sgd import DPSGD
from diffusers_dp_curriculum.sampling.saved_pipelines import image_shape, load_pipeline
from diffusers_dp_curriculum.sharing.hub import push_model
from diffusers_dp_curriculum.training import warm_up as warm_up_module
from helpers import PUBLISHED, smallest_unet, tiny_records, tiny_scheduler, tiny_unet
from helpers.autoencoders import tiny_kl, tiny_taesd, tiny_vq
from helpers.runs import finish, make_config


pytestmark = pytest.mark.usefixtures("fresh_accelerator")
ASSUMED = "the autoencoder, that of a local checkpoint, which has learned nothing from these records"
FREQUENCY = {"frequency_features": 40, "frequency_noise_multiplier": 20.0, "frequency_train_steps": 2}
QUICK = {"central_train_steps": 1, "max_train_steps": 1, "noise_multiplicity": 1}


@pytest.fixture
def public(tmp_path):
    """The directory of a public autoencoder of colour images."""
    tiny_kl().save_pretrained(tmp_path / "secret-place")
    return tmp_path / "secret-place"


def records_of(num_classes=3, channels=1):
    return tiny_records(size=16, num_classes=num_classes, channels=channels)


def trainer(output_dir, vae, records=None, unet=None, scheduler=None, **options):
    records = records_of() if records is None else records
    unet = smallest_unet(num_classes=records.num_classes, size=4, channels=4) if unet is None else unet
    vae = None if vae is None else str(vae)
    config = make_config(output_dir, vae_name_or_path=vae, **{**QUICK, **options})
    return DPCurriculumTrainer(unet, scheduler or build_scheduler(latents=True), config, records)


def files_of(directory):
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_a_run_with_every_stage(tmp_path, public, messages, monkeypatch):
    read, encoded = [], []
    original, encode = DPSGD.__init__, warm_up_module._for_network

    def watched(self, model, optimizer, loss, records, *others, **options):
        read.append(records)
        original(self, model, optimizer, loss, records, *others, **options)

    monkeypatch.setattr(DPSGD, "__init__", watched)
    monkeypatch.setattr(warm_up_module, "_for_network", lambda *given: encoded.append(encode(*given)) or encoded[-1])
    run = trainer(tmp_path / "model", public, **{**QUICK, **FREQUENCY, "frequency_generator_steps": 2})
    privacy = finish(run)
    plain = DPCurriculumTrainer(
        smallest_unet(size=16),
        tiny_scheduler(),
        make_config(tmp_path / "plain", **QUICK, **FREQUENCY, frequency_generator_steps=2),
        records_of(),
    )
    # The queries are of pixels, and cost what they cost without an autoencoder.
    assert run.plan.warm_ups == plain.plan.warm_ups
    assert run.plan.dp_sgd == plain.plan.dp_sgd
    (records,) = read
    assert type(records) is LatentDataset
    assert records.latents.shape == (60, 1, 4, 4, 4)
    assert {latents.shape[1:] for latents in encoded} == {(4, 4, 4)}
    assert run.released_images["central_images"].images.shape[1:] == (1, 16, 16)

    assert ASSUMED in privacy["public_assumptions"]
    assert (
        f"  latents         4x4x4 in place of 16x16x1, 4 times fewer numbers for the network; 1 MiB in all, by the "
        f"AutoencoderKL of {public}\n" in messages.text
    )
    card = (tmp_path / "model" / "README.md").read_text()
    assert ASSUMED in card
    assert "The network denoises latents of a public autoencoder, that of a local checkpoint" in card
    assert "| latents | 4x4x4 |" in card
    published = {path for path in files_of(tmp_path / "model") if not path.startswith(("private/", "."))}
    assert published == {
        *PUBLISHED,
        "frequency_images.png",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    for path in (tmp_path / "model").rglob("*"):
        assert not path.is_file() or b"secret-place" not in path.read_bytes(), path
    assert "its autoencoder, which is public" in run.summary()

    pipeline = load_pipeline(str(tmp_path / "model"))
    assert type(pipeline) is ClassConditionalPipeline
    assert image_shape(pipeline) == (1, 16, 16)
    synthetic = generate_dataset(pipeline, 1, num_inference_steps=2, privacy_json=tmp_path / "model" / "privacy.json")
    assert [(image.mode, image.size) for image in synthetic["image"]] == [("L", (16, 16))] * 3


def test_no_latent_stays_on_a_disk(tmp_path, public, monkeypatch):
    kept = []
    original = DPSGD.__init__

    def watched(self, model, optimizer, loss, records, *others, **options):
        kept.append(records.latents)
        original(self, model, optimizer, loss, records, *others, **options)

    monkeypatch.setattr(DPSGD, "__init__", watched)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("diffusers_dp_curriculum.data.storage.MAX_BYTES_IN_MEMORY", 1000)
    finish(trainer(tmp_path / "model", public))
    (latents,) = kept
    needles = [latents[index].numpy().tobytes()[:32] for index in range(10)]
    needles += [latents[index].float().numpy().tobytes()[:32] for index in range(10)]
    for path in tmp_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(needle in content for needle in needles), path
    assert list(temporary.iterdir()) == []


def test_images_are_mirrored_before_they_are_encoded(tmp_path, public):
    run = trainer(tmp_path / "model", public, random_flip=True)
    assert not run.loss.random_flip
    records = run._records_for_network()
    images = run.records.batch(torch.arange(8))[0]
    expected = torch.stack([run.autoencoder.encode(images), run.autoencoder.encode(images.flip(-1))], dim=1)
    torch.testing.assert_close(records.latents[:8].float(), expected, rtol=1e-3, atol=1e-3)
    torch.manual_seed(0)
    drawn = warm_up_module._for_network(images / 2 + 0.5, 4, run.autoencoder, random_flip=True)
    distances = (drawn[:, None] - expected).abs().amax((2, 3, 4))
    assert (distances.min(1).values < 1e-3).all()
    assert 0 < distances.argmin(1).sum() < 8


def test_without_classes_it_is_the_stock_pipeline_of_latents(tmp_path):
    tiny_vq().save_pretrained(tmp_path / "public")
    records = records_of(num_classes=None, channels=3)
    unet = smallest_unet(num_classes=None, size=4, channels=3)
    run = trainer(tmp_path / "model", tmp_path / "public", records, unet)
    finish(run)
    assert {"vqvae/config.json", "vqvae/diffusion_pytorch_model.safetensors"} <= files_of(tmp_path / "model")
    assert not (tmp_path / "model" / "pipeline.py").exists()
    pipeline = load_pipeline(str(tmp_path / "model"))
    assert type(pipeline) is LDMPipeline  # of diffusers, and so without any code of ours
    assert (type(pipeline.vqvae), type(pipeline.scheduler)) == (VQModel, DDIMScheduler)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert image_shape(pipeline) == (3, 16, 16)
    first, second = (generate_dataset(pipeline, 2, num_inference_steps=2)["image"][:] for _ in range(2))
    assert [image.tobytes() for image in first] == [image.tobytes() for image in second]


def test_a_run_is_resumed_with_its_autoencoder(tmp_path, public):
    options = {"max_train_steps": 3, "checkpointing_steps": 1}
    first = trainer(tmp_path / "model", public, **options)
    original = first._after_step

    def after_step(state, *others, **flags):
        stop = original(state, *others, **flags)
        return stop or first._number(state) == 2

    first._after_step = after_step
    assert first.train() is RunStatus.TERMINATED
    again = {**options, "resume_from_checkpoint": "latest"}
    tiny_kl(scaling_factor=0.5).save_pretrained(tmp_path / "other")
    other = AutoencoderKL.from_pretrained(tmp_path / "other")
    other.encoder.conv_in.bias.data += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="was made with other autoencoder: resume with the settings"):
        trainer(tmp_path / "model", tmp_path / "other", **again)
    resumed = trainer(tmp_path / "model", public, **again)
    privacy = finish(resumed)
    assert ASSUMED in privacy["public_assumptions"]
    assert [mechanism["steps"] for mechanism in privacy["mechanisms"]] == [5, 3]


def test_a_start_of_latents_brings_its_autoencoder(tmp_path):
    """As CompVis/ldm-celebahq-256 does."""
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    LDMPipeline(tiny_vq(), smallest_unet(num_classes=None, channels=3, size=8), scheduler).save_pretrained(
        tmp_path / "public"
    )
    records = records_of(channels=3)
    unet, noise_scheduler = load_starting_point(str(tmp_path / "public"), records.info)
    assert (unet.config.in_channels, unet.config.sample_size, unet.config.num_class_embeds) == (3, 4, 4)
    options = {"pretrained_model_name_or_path": str(tmp_path / "public")}
    with pytest.raises(InputError, match="public brings its own autoencoder, and `vae_name_or_path` is .*: give one"):
        trainer(tmp_path / "model", tmp_path / "public", records, unet, noise_scheduler, **options)
    run = trainer(tmp_path / "model", None, records, unet, noise_scheduler, **options)
    privacy = finish(run)
    assert privacy["public_assumptions"][-2] == ASSUMED
    published = ClassConditionalPipeline.from_pretrained(tmp_path / "model")
    for name, tensor in tiny_vq().state_dict().items():
        assert torch.equal(published.vae.state_dict()[name], tensor)
    grey = records_of()
    unet, noise_scheduler = load_starting_point(str(tmp_path / "public"), grey.info)
    assert (
        trainer(tmp_path / "grey", None, grey, unet, noise_scheduler, **options).autoencoder.model.config["in_channels"]
        == 1
    )


def test_a_network_of_latents_alone_is_started_with_an_autoencoder(tmp_path, public):
    smallest_unet(num_classes=None, channels=4, size=8).save_pretrained(tmp_path / "network")
    unet, _ = load_starting_point(str(tmp_path / "network"), records_of().info, str(public))
    assert (unet.config.in_channels, unet.config.sample_size) == (4, 4)
    trainer(tmp_path / "model", public, unet=unet, pretrained_model_name_or_path=str(tmp_path / "network"))
    smallest_unet(num_classes=None, channels=3, size=8).save_pretrained(tmp_path / "pixels")
    with pytest.raises(InputError, match="takes 3 channels and gives 3, and the latents have 4: give a network of the"):
        load_starting_point(str(tmp_path / "pixels"), records_of().info, str(public))


def test_a_pipeline_of_pixels_takes_no_autoencoder(tmp_path, public):
    ClassConditionalPipeline(smallest_unet(size=16), tiny_scheduler()).save_pretrained(tmp_path / "pixels")
    with pytest.raises(InputError, match="is a pipeline of pixels, and `vae_name_or_path` is .*: give one of them"):
        load_starting_point(str(tmp_path / "pixels"), records_of().info, str(public))


REFUSED = {
    "a scheduler that clips": ({"scheduler": build_scheduler()}, "clips samples to the range of pixels"),
    "a network of pixels": (
        {"unet": smallest_unet(size=4)},
        "The latents have 4 channels, and the UNet takes 1 and gives 1",
    ),
    "images of another size": (
        {"unet": smallest_unet(size=8, channels=4)},
        "were loaded with 16 pixels per side: load them with `resolution` 32",
    ),
    "no classes and a shift": (
        {
            "unet": smallest_unet(num_classes=None, size=4, channels=4),
            "records": tiny_records(size=16, num_classes=None),
            "shift_factor": 0.1,
        },
        "which knows no shift_factor as this autoencoder has: use another autoencoder, or images with labels",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, case):
    given, message = REFUSED[case]
    given = dict(given)
    tiny_kl(shift_factor=given.pop("shift_factor", None)).save_pretrained(tmp_path / "public")
    with pytest.raises(InputError, match=message) as refusal:
        trainer(tmp_path / "model", tmp_path / "public", **given)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "model").exists()


def test_an_autoencoder_on_the_hub_is_named(hub, tmp_path, public, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    HfApi().create_repo("autoencoder")
    HfApi().upload_folder(folder_path=public, repo_id="alice/autoencoder")
    run = trainer(tmp_path / "model", "alice/autoencoder")
    privacy = finish(run)
    push_model(run.output_dir, "alice/model")
    assert {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"} <= set(HfApi().list_repo_files("alice/model"))
    assert privacy["public_assumptions"][-2] == ASSUMED.replace("a local checkpoint", "alice/autoencoder on the Hub")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "latents of a public autoencoder, that of alice/autoencoder on the Hub" in card
    assert "alice/autoencoder" not in (tmp_path / "model" / "vae" / "config.json").read_text()


def test_public_images_train_a_start_of_latents(tmp_path):
    tiny_taesd().save_pretrained(tmp_path / "public")
    records = records_of(channels=3)
    config = make_config(tmp_path / "start", vae_name_or_path=str(tmp_path / "public"), max_train_steps=2)
    unet = smallest_unet(size=4, channels=4)
    assert pretrain(unet, build_scheduler(latents=True), config, records) is RunStatus.FINISHED
    unet, noise_scheduler = load_starting_point(str(tmp_path / "start"), records.info)
    assert not noise_scheduler.config.clip_sample
    options = {"pretrained_model_name_or_path": str(tmp_path / "start")}
    run = trainer(tmp_path / "model", None, records, unet, noise_scheduler, **options)
    assert run.autoencoder.checksum() == replace(run.autoencoder, model=tiny_taesd()).checksum()


@pytest.mark.slow
def test_the_commands_know_the_flag(tmp_path, public, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = f"--dataset_name digits --resolution 16 --vae_name_or_path {public}"
    quick = "--accountant rdp --noise_multiplicity 1 --block_out_channels 8 --train_batch_size 4 --plan"
    one_stage = "--central_statistic none --frequency_features 0"
    assert cli.main(["train", *common.split(), *quick.split(), *one_stage.split()]) == 0
    assert "  latents         4x4x4 in place of 16x16x1" in capsys.readouterr().out
    audit = "--max_train_steps 2 --gradient_canaries 100 --image_canaries 100"
    assert cli.main(["audit", *common.split(), *audit.split(), *one_stage.split()]) == 0
    assert "not refuted" in capsys.readouterr().out
    assert cli.main(["train", *common.replace("secret", "typo").split(), "--plan"]) == 1
    assert "has no autoencoder: give the directory or Hub id of an AutoencoderKL" in capsys.readouterr().err


def test_adapters_are_trained_and_merged(tmp_path, public):
    pytest.importorskip("peft")
    run = trainer(tmp_path / "model", public, unet=tiny_unet(size=4, channels=4), trainable="lora", lora_rank=2)
    finish(run)
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
