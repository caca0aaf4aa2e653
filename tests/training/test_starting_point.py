"""A run starts from a trained network, says so, and counts what the network has learned from sensitive records."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from diffusers_dp_curriculum import (
    ClassConditionalPipeline,
    DPCurriculumTrainer,
    HubError,
    InputError,
    cli,
    load_starting_point,
    recompute_epsilon,
)
from diffusers_dp_curriculum.privacy.journal import read_released
from diffusers_dp_curriculum.privacy.statement import PrivacyStatement
from diffusers_dp_curriculum.training.starting_point import find_starting_point
from helpers import smallest_unet, tiny_records, tiny_scheduler, tiny_unet, write_privacy_json
from helpers.runs import finish, interrupted, make_config, make_trainer


pytestmark = pytest.mark.usefixtures("fresh_accelerator")
WEIGHTS = "diffusion_pytorch_model.safetensors"
QUICK = {"central_train_steps": 1, "max_train_steps": 1, "noise_multiplicity": 1}


def save_public(path, unet=None, scheduler=None):
    """Write a pipeline as diffusers does, and return its directory."""
    unet = smallest_unet(num_classes=None, channels=3, size=16) if unet is None else unet
    DDPMPipeline(unet, DDPMScheduler(beta_schedule="linear")).save_pretrained(path)
    if scheduler is not None:
        _edit(path / "model_index.json", scheduler=["diffusers", type(scheduler).__name__])
        scheduler.save_pretrained(path / "scheduler")
    return path


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def start(name, info):
    """The network and the noise scheduler of a start, as the arguments of a trainer."""
    unet, noise_scheduler = load_starting_point(str(name), info)
    return {"unet": unet, "noise_scheduler": noise_scheduler or tiny_scheduler()}


def trainer_from(output_dir, name, records=None, **options):
    records = tiny_records() if records is None else records
    config = make_config(output_dir, pretrained_model_name_or_path=str(name), **{**QUICK, **options})
    return DPCurriculumTrainer(**start(name, records.info), args=config, train_dataset=records)


def published_files(directory):
    return [path for path in directory.rglob("*") if path.is_file() and "private" not in path.parts]


# Where a network comes from


def test_old_repositories_have_all_files_at_the_top_and_other_names_of_attention(tmp_path):
    """As google/ddpm-cifar10-32 and its relatives have."""
    torch.manual_seed(0)
    unet = tiny_unet(num_classes=None, channels=3).eval()
    unet.save_pretrained(tmp_path)
    tensors, old = load_file(tmp_path / WEIGHTS), {"to_q": "query", "to_k": "key", "to_v": "value"}
    old["to_out.0"] = "proj_attn"
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    assert any(".proj_attn." in key for key in tensors)
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    DDPMScheduler(beta_schedule="linear").save_pretrained(tmp_path)
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", **parts}))
    loaded, scheduler = load_starting_point(str(tmp_path), tiny_records(num_classes=None, channels=3).info)
    images, times = torch.randn(2, 3, 8, 8), torch.tensor([1, 500])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images, times).sample, unet(images, times).sample)
    assert scheduler.config.beta_schedule == "linear"


def test_a_network_alone_has_no_noise_scheduler(tmp_path):
    smallest_unet(num_classes=None).save_pretrained(tmp_path)
    unet, noise_scheduler = load_starting_point(str(tmp_path), tiny_records().info)
    assert noise_scheduler is None
    assert unet.config.num_class_embeds == 4
    assert str(tmp_path) not in str(dict(unet.config))


def test_a_pipeline_of_this_library_has_a_null_class_and_names_of_classes(tmp_path):
    unet = smallest_unet(num_classes=3)
    names = {0: "class 2", 1: "zebra", 2: "class 0"}
    ClassConditionalPipeline(unet, tiny_scheduler(), id2label=names).save_pretrained(tmp_path)
    rows = load_starting_point(str(tmp_path), tiny_records().info)[0].class_embedding.weight
    old = unet.class_embedding.weight
    torch.testing.assert_close(rows, torch.stack([old[2], old[3], old[0], old[3]]))


def test_classes_without_names_are_not_taken_for_digits(tmp_path):
    unet, records = smallest_unet(num_classes=3), tiny_records()
    ClassConditionalPipeline(unet, tiny_scheduler()).save_pretrained(tmp_path)
    records.class_names = ["0", "1", "2"]
    rows = load_starting_point(str(tmp_path), records.info)[0].class_embedding.weight
    torch.testing.assert_close(rows, unet.class_embedding.weight[3].expand(4, -1))


@pytest.mark.parametrize(
    "kind", [DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, DDPMScheduler]
)
def test_a_sampler_with_the_same_betas_becomes_the_scheduler_that_there_is_a_loss_for(tmp_path, kind):
    options = {"num_train_timesteps": 50, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    noise_scheduler = find_starting_point(str(save_public(tmp_path, scheduler=kind(**options)))).noise_scheduler
    expected = DDPMScheduler(**options)
    assert type(noise_scheduler) is DDPMScheduler
    assert torch.equal(noise_scheduler.alphas_cumprod, expected.alphas_cumprod)
    assert noise_scheduler.config.prediction_type == "v_prediction"
    assert noise_scheduler.config.variance_type == "fixed_small"


def test_a_sampler_of_edm_becomes_that_of_the_loss(tmp_path):
    sampler = EDMDPMSolverMultistepScheduler(sigma_data=0.3, sigma_max=10.0)
    noise_scheduler = find_starting_point(str(save_public(tmp_path, scheduler=sampler))).noise_scheduler
    assert type(noise_scheduler) is EDMEulerScheduler
    assert (noise_scheduler.config.sigma_data, noise_scheduler.config.sigma_max) == (0.3, 10.0)


# What is refused


def without_safetensors(path):
    save_public(path)
    (path / "unet" / WEIGHTS).rename(path / "unet" / "diffusion_pytorch_model.bin")


def without_a_layer(path):
    save_public(path)
    tensors = load_file(path / "unet" / WEIGHTS)
    del tensors["conv_out.bias"]
    save_file(tensors, path / "unet" / WEIGHTS, metadata={"format": "pt"})


def of_another_size(path):
    save_public(path)
    _edit(path / "unet" / "config.json", block_out_channels=[16])


def diverged(path):
    unet = smallest_unet(num_classes=None)
    unet.conv_in.weight.data.fill_(float("nan"))
    save_public(path, unet)


def with_another_part(path):
    save_public(path)
    _edit(path / "model_index.json", text_encoder=["transformers", "CLIPTextModel"])


def without_its_autoencoder(path):
    save_public(path)
    _edit(path / "model_index.json", vqvae=["diffusers", "VQModel"])


def of_another_network(path):
    save_public(path)
    _edit(path / "model_index.json", unet=["diffusers", "UNet2DConditionModel"])


def conditional(path):
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "mid_block_type": None}
    UNet2DConditionModel(8, 1, 1, block_out_channels=[8], norm_num_groups=4, **blocks).save_pretrained(path)


def with_config(path, **options):
    smallest_unet(**{"num_classes": None, **options}).save_pretrained(path)


def damaged(path):
    save_public(path)
    (path / "model_index.json").write_text("{")


def of_no_blocks(path):
    with_config(path)
    _edit(path / "config.json", down_block_types=["NoBlock2D"])


REFUSED = {
    "nothing in it": (lambda path: path.mkdir(), "has neither a pipeline of diffusers nor a UNet2DModel: give"),
    "a file cut off": (damaged, r"model_index\.json of .* cannot be read"),
    "texts": (with_another_part, "has a part called text_encoder besides its network, its scheduler and an autoencod"),
    "no autoencoder": (without_its_autoencoder, r"config\.json of .* cannot be read"),
    "another network": (of_another_network, "no pipeline of a UNet2DModel and a scheduler, but of DDPMScheduler, UNet"),
    "another network alone": (conditional, "is a UNet2DConditionModel: give a UNet2DModel"),
    "four channels": (lambda path: with_config(path, channels=4), "takes 4 channels and gives 4, as networks of lat"),
    "a variance": (lambda path: with_config(path, channels=3, out_channels=6), "takes 3 channels and gives 6"),
    "other classes": (lambda path: with_config(path, class_embed_type="timestep"), "has class_embed_type='timestep'"),
    "unknown blocks": (of_no_blocks, r"config\.json of .* gives no UNet2DModel \(ValueError: NoBlock2D"),
    "a flow": (lambda path: save_public(path, scheduler=FlowMatchEulerDiscreteScheduler()), "for which there is no lo"),
    "old weights": (without_safetensors, "has no weights in the format of safetensors"),
    "a missing layer": (without_a_layer, r"has no weights for conv_out\.bias"),
    "other weights": (of_another_size, "The weights of .* are not those of its config"),
    "diverged": (diverged, "are not all finite numbers"),
    "too many levels": (
        lambda path: with_config(
            path, block_out_channels=(8,) * 5, down_block_types=("DownBlock2D",) * 5, up_block_types=("UpBlock2D",) * 5
        ),
        "A resolution of 8 cannot be halved 4 times",
    ),
    "blocks for colours": (
        lambda path: with_config(
            path,
            channels=3,
            block_out_channels=(32,),
            down_block_types=("SkipDownBlock2D",),
            up_block_types=("SkipUpBlock2D",),
        ),
        "has blocks for 3 channels alone, and the images have 1: load the images with `channels` 3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_start_is_refused_in_one_sentence(tmp_path, case):
    write, message = REFUSED[case]
    write(tmp_path / "start")
    with pytest.raises(InputError, match=message) as refusal:
        load_starting_point(str(tmp_path / "start"), tiny_records().info)
    assert "\n" not in str(refusal.value)


# What a run says of it


def test_a_start_on_this_machine_is_named_without_its_path(tmp_path, messages):
    public = save_public(tmp_path / "my-secret-place")
    trainer = trainer_from(tmp_path / "model", public)
    privacy = finish(trainer)
    assumed = "the initial weights of the network, those of a local checkpoint, which have learned nothing from these"
    assert privacy["public_assumptions"][-1].startswith(assumed)
    assert f"  starts from     {public}\n" in messages.text
    card = (tmp_path / "model" / "README.md").read_text()
    assert assumed in card
    assert "Training started from the weights of a local checkpoint." in card
    assert "base_model" not in card
    for path in (tmp_path / "model").rglob("*"):
        assert not path.is_file() or b"my-secret-place" not in path.read_bytes(), path
    assert trainer.noise_scheduler.config.beta_schedule == "linear"
    assert ClassConditionalPipeline.from_pretrained(tmp_path / "model").unet.config.in_channels == 1


def test_without_a_start_nothing_is_said_of_one(tmp_path):
    trainer = make_trainer(tmp_path / "model", **QUICK)
    assert "  starts from     random weights\n" in trainer.describe_plan()
    privacy = finish(trainer)
    assert privacy["public_assumptions"][-1] == (
        "the initial weights of the network, which have learned nothing from these records"
    )
    assert "Training started from" not in (tmp_path / "model" / "README.md").read_text()


def test_a_run_that_was_interrupted_continues_from_the_same_start_alone(tmp_path):
    public, records = save_public(tmp_path / "public"), tiny_records()
    options = {"pretrained_model_name_or_path": str(public)}
    interrupted(tmp_path / "model", 4, unet=start(public, records.info)["unet"], **options)
    with pytest.raises(InputError, match="was made with other pretrained_model_name_or_path: resume with the set"):
        make_trainer(tmp_path / "model", resume_from_checkpoint="latest")
    shutil.rmtree(tmp_path / "model" / "private" / "checkpoints")
    again = make_trainer(tmp_path / "model", resume_from_checkpoint="latest")
    with pytest.raises(InputError, match="was started with other weights .*a local checkpoint.*: resume it with the"):
        again.train()


def test_a_run_is_resumed_with_its_start(tmp_path):
    public, records = save_public(tmp_path / "public"), tiny_records()
    options = {"pretrained_model_name_or_path": str(public)}
    interrupted(tmp_path / "model", 4, unet=start(public, records.info)["unet"], **options)
    unet = start(public, records.info)["unet"]
    privacy = finish(make_trainer(tmp_path / "model", unet, resume_from_checkpoint="latest", **options))
    assert privacy["mechanisms"][-1]["steps"] == 4
    assert "a local checkpoint" in privacy["public_assumptions"][-1]


@pytest.mark.parametrize(
    ("loaded", "named", "message"),
    [
        (True, None, "The UNet was loaded from .*public, and `pretrained_model_name_or_path` of the config is None"),
        (True, "elsewhere", "was loaded from .*public, and `pretrained_model_name_or_path` of the config is elsewhere"),
        (False, "public", "was not loaded by `load_starting_point`, and"),
    ],
)
def test_the_config_names_what_was_loaded(tmp_path, loaded, named, message):
    public = save_public(tmp_path / "public")
    unet = start(public, tiny_records().info)["unet"] if loaded else smallest_unet()
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path / "model", unet, pretrained_model_name_or_path=named)
    assert not (tmp_path / "model").exists()


# What has learned from sensitive records; from central images alone, as planning DP-SGD takes seconds for each target

BY_QUERIES = {**QUICK, "max_train_steps": 0}


def test_the_result_of_a_run_is_a_start_if_that_run_is_counted(tmp_path):
    first = make_trainer(tmp_path / "first", target_epsilon=3.0, **BY_QUERIES)
    before = finish(first)
    name = tmp_path / "first"
    with pytest.raises(InputError, match="has learned from sensitive records, .* give it as `prior_runs` as well"):
        trainer_from(tmp_path / "second", name)
    shutil.copytree(tmp_path / "first", tmp_path / "copy", ignore=shutil.ignore_patterns("private"))
    with pytest.raises(InputError, match="does not count its cost"):
        trainer_from(tmp_path / "second", tmp_path / "copy")
    assert not (tmp_path / "second").exists()
    privacy = finish(trainer_from(tmp_path / "second", name, prior_runs=[str(tmp_path / "first")], **BY_QUERIES))
    assert privacy["epsilon"] > before["epsilon"]
    assert recompute_epsilon(privacy) == privacy["epsilon"] <= 10
    assert privacy["public_assumptions"][-1] == (
        "the initial weights of the network, those of a local checkpoint, which have learned from these records in the "
        "counted previous runs alone"
    )


def test_a_part_of_a_result_is_what_the_whole_is(tmp_path):
    write_privacy_json(save_public(tmp_path / "published") / "privacy.json")
    with pytest.raises(InputError, match="has learned from sensitive records"):
        trainer_from(tmp_path / "model", tmp_path / "published" / "unet")


def test_another_previous_run_does_not_cover_it(tmp_path):
    public = save_public(tmp_path / "published")
    write_privacy_json(public / "privacy.json")
    write_privacy_json(tmp_path / "other.json")
    with pytest.raises(InputError, match="has learned from sensitive records"):
        trainer_from(tmp_path / "model", public, prior_runs=[str(tmp_path / "other.json")])
    trainer_from(tmp_path / "model", public, prior_runs=[str(public / "privacy.json")], **BY_QUERIES)


def test_a_run_that_gives_no_privacy_is_no_start(tmp_path):
    public = save_public(tmp_path / "published")
    write_privacy_json(public / "privacy.json", private=False)
    with pytest.raises(InputError, match="is not private, and no epsilon covers what it has released"):
        trainer_from(tmp_path / "model", public, prior_runs=[str(public)])


# The Hub


@pytest.fixture
def on_hub(hub, tmp_path, monkeypatch):
    """A Hub that has the pipeline alice/public, and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    public = save_public(tmp_path / "public")
    (public / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another copy of the weights")
    (public / "README.md").write_text("A public model.\n")
    HfApi().create_repo("public")
    HfApi().upload_folder(folder_path=public, repo_id="alice/public")
    return hub


def test_a_start_on_the_hub_is_named(on_hub, tmp_path):
    trainer = trainer_from(tmp_path / "model", "alice/public", hub_license="mit")
    privacy = finish(trainer)
    assumed = "those of alice/public on the Hub, which have learned nothing from these records"
    assert privacy["public_assumptions"][-1] == f"the initial weights of the network, {assumed}"
    assert PrivacyStatement.from_dict(privacy).to_dict() == privacy
    assert assumed in read_released(tmp_path / "model" / "private" / "journal.jsonl").header["initial_weights"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "base_model: alice/public\n" in card
    assert "Training started from the weights of alice/public on the Hub." in card
    fetched = " ".join(request for request in on_hub.requests if "/resolve/" in request)
    assert "unet/diffusion_pytorch_model.safetensors" in fetched
    assert "fp16" not in fetched
    assert "README" not in fetched


def test_offline_the_cache_has_the_start(on_hub, monkeypatch):
    info = tiny_records().info
    unet, _ = load_starting_point("alice/public", info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    again, _ = load_starting_point("alice/public", info)
    assert all(torch.equal(*pair) for pair in zip(unet.parameters(), again.parameters(), strict=True))


def test_a_cache_that_was_never_asked_for_the_statement_is_not_believed(on_hub, monkeypatch):
    huggingface_hub.snapshot_download("alice/public", allow_patterns=["*.json", "*/*"])  # as diffusers does
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="whether alice/public has a privacy.json is known only there: load it once"):
        load_starting_point("alice/public", tiny_records().info)


def test_the_published_result_of_a_run_is_no_public_start(on_hub, tmp_path):
    HfApi().upload_file(
        path_or_fileobj=write_privacy_json(tmp_path / "privacy.json"),
        path_in_repo="privacy.json",
        repo_id="alice/public",
    )
    with pytest.raises(InputError, match="alice/public has learned from sensitive records"):
        trainer_from(tmp_path / "model", "alice/public")
    trainer_from(tmp_path / "model", "alice/public", prior_runs=["alice/public"], **BY_QUERIES)


def test_repositories_that_cannot_be_had_are_one_sentence(on_hub):
    info = tiny_records().info
    with pytest.raises(InputError, match="^alice/typo has neither a pipeline of diffusers nor a UNet2DModel: give"):
        load_starting_point("alice/typo", info)
    on_hub.fail("HEAD .*/resolve/", 403, "Access is restricted", times=9, code="GatedRepo")
    with pytest.raises(HubError, match="^alice/public is gated: accept its terms on its page on the Hub, and log in"):
        load_starting_point("alice/public", info)


# The command line


def test_the_command_starts_from_it_whatever_network_the_flags_describe(tmp_path, capsys):
    public = save_public(tmp_path / "public")
    flags = f"--dataset_name digits --output_dir {tmp_path / 'model'} --accountant rdp --noise_multiplicity 1 --plan"
    start = ["--pretrained_model_name_or_path", str(public)]
    ignored = ["--attention_levels", "7", "--noise_scheduler", "edm", "--prediction_type", "epsilon"]
    assert cli.main(["train", *flags.split(), *start, *ignored]) == 0
    assert f"starts from     {public}\n" in capsys.readouterr().out
    assert cli.main(["train", *flags.split(), *start, "--model_config_name_or_path", str(public)]) == 1
    assert "--pretrained_model_name_or_path brings its own network" in capsys.readouterr().err
    assert cli.main(["train", *flags.split(), "--pretrained_model_name_or_path", str(tmp_path / "typo")]) == 1
    assert "typo has neither a pipeline of diffusers nor a UNet2DModel: give the directory" in capsys.readouterr().err
