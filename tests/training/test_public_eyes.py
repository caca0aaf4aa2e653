"""The public model of a run: how it is loaded and looks at images, what is said of it, and how the run is resumed."""

import json

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
)

from diffusers_dp_curriculum import DatasetInfo, DPCurriculumConfig, FrequencyImageDataset, InputError, cli
from diffusers_dp_curriculum.mechanisms.perceptual_features import PerceptualFeatureQuery, PerceptualFeatures
from diffusers_dp_curriculum.privacy.journal import read_released
from diffusers_dp_curriculum.training.frequency_choice import SMALL_NOISE, choose_frequency_features
from diffusers_dp_curriculum.training.public_eyes import VisionModelEyes, load_public_eyes
from helpers.runs import finish, interrupted, make_trainer
from helpers.vision_models import PATCHES, TINY, save_vision_model, tiny_dinov2


pytestmark = pytest.mark.usefixtures("fresh_accelerator", "small_batches")
ASSUMED = "the model whose features are queried, {}, which has learned nothing from these records"
STAGE = {
    "frequency_features": 32,
    "frequency_noise_multiplier": 3.0,
    "frequency_generator_steps": 3,
    "frequency_train_steps": 2,
    "frequency_batch_size": 4,
}


@pytest.fixture
def eyes_directory(tmp_path):
    torch.manual_seed(0)
    return save_vision_model(tiny_dinov2(), tmp_path / "secret-place")


MODELS = {
    "dinov2": (lambda: tiny_dinov2(num_hidden_layers=9), 4 * 16),
    "resnet": (lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])), 8 + 12),
    "clip": (
        lambda: CLIPModel(CLIPConfig(text_config={"vocab_size": 9, **TINY}, vision_config={**TINY, **PATCHES})),
        16,
    ),
    "classifier": (lambda: ViTForImageClassification(ViTConfig(**TINY, **PATCHES)), 16),
}


@pytest.mark.parametrize("model", MODELS)
def test_models_look_through_some_of_their_layers(model, tmp_path):
    """A classifier is saved without the pooling layer, which is not used."""
    make, channels = MODELS[model]
    path = save_vision_model(make(), tmp_path)
    eyes = VisionModelEyes(path)
    assert eyes.num_features == 2 * channels
    assert eyes.fingerprint == VisionModelEyes(path).fingerprint
    images = torch.rand(3, 1, 8, 8)
    for layer, repeated in zip(eyes.layers(images), eyes.layers(images.expand(-1, 3, -1, -1)), strict=True):
        assert torch.equal(layer, repeated)
        assert layer.std(dim=0).max() > 0


def test_layers_are_evenly_spaced_hidden_states(tmp_path):
    model = tiny_dinov2(num_hidden_layers=9)
    eyes = VisionModelEyes(save_vision_model(model, tmp_path))
    images = torch.rand(2, 3, 16, 16)
    states = model.eval()(pixel_values=(images - 0.5) / 0.25, output_hidden_states=True).hidden_states
    expected = [states[number].mean(dim=1) for number in (2, 4, 6, 9)]
    for found, layer in zip(eyes.layers(images), expected, strict=True):
        torch.testing.assert_close(found, layer.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": {"height": 16, "width": 16}},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1, 0.5, 0], "image_std": [1, 2, 3]},
    ],
)
def test_images_are_prepared_as_the_model_asks(options, tmp_path):
    """An image of one colour is the same whatever is cut off."""
    path = save_vision_model(tiny_dinov2(), tmp_path, **options)
    eyes, seen = VisionModelEyes(path), []
    eyes.model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["pixel_values"]), with_kwargs=True)
    colour = torch.tensor([200, 100, 30], dtype=torch.uint8)
    eyes((colour.float() / 255)[None, :, None, None].expand(1, 3, 8, 8))
    image = Image.fromarray(colour.expand(8, 8, 3).numpy())
    expected = AutoImageProcessor.from_pretrained(path, backend="pil")([image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen[0], expected, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_used_is_refused(tmp_path):
    text = save_vision_model(BertModel(BertConfig(vocab_size=9, **TINY)), tmp_path / "text")
    with pytest.raises(InputError, match="takes input_ids and no images: give a vision model"):
        VisionModelEyes(text)
    path = save_vision_model(tiny_dinov2(), tmp_path / "eyes")
    for number in (0, 400):
        config = DPCurriculumConfig(feature_extractor=path, frequency_features=number)
        with pytest.raises(InputError, match=f"`frequency_features` is {number}, and .* has 32 features: give auto or"):
            load_public_eyes(config)
    assert load_public_eyes(DPCurriculumConfig(feature_extractor=path)).num_features == 32


def test_the_noise_follows_from_the_number_of_features_of_the_model(eyes_directory):
    eyes, config = VisionModelEyes(eyes_directory), DPCurriculumConfig(accountant="rdp")
    many, few = DatasetInfo(10**7, 1, 8), DatasetInfo(10, 1, 8)
    chosen = choose_frequency_features(config, many, [], eyes)
    assert (chosen.num_features, chosen.reason) == (32, "")
    assert chosen.noise_multiplier == pytest.approx(SMALL_NOISE * 10**7 / 32**0.5)
    drowned = choose_frequency_features(config, few, [], eyes)
    assert drowned.num_features == 0
    assert "the noise on them would be too large" in drowned.reason


def test_a_run_looks_through_the_model_and_says_so(tmp_path, eyes_directory):
    trainer = make_trainer(tmp_path / "model", feature_extractor=eyes_directory, **STAGE)
    plan = trainer.describe_plan()
    assert f"looks through   {eyes_directory}, with 32 features" in plan
    assert "perceptual_features: 1 query, noise multiplier 3, sample rate 1" in plan
    privacy = finish(trainer)
    assert [entry["name"] for entry in privacy["mechanisms"]] == [
        "central_images_mean",
        "perceptual_features",
        "dp_sgd",
    ]
    assert ASSUMED.format("a local model") in privacy["public_assumptions"]
    features = PerceptualFeatures.load_from_disk(trainer.paths.released("perceptual_features"))
    assert features.sums.shape == (3, 32)
    images = FrequencyImageDataset.load_from_disk(trainer.paths.released("frequency_images"))
    assert len(images) == 60 + 3 * 10
    card = (trainer.output_dir / "README.md").read_text()
    assert ASSUMED.format("a local model") in card
    assert "the central images (DP means), the features of a public model and training by DP-SGD" in card
    assert "fitted to the DP features of a public model" in card
    assert "The query before the frequency images was for features of a local model." in card
    assert "2205.12900" in card
    for path in trainer.output_dir.rglob("*"):
        if path.is_file() and "private" not in path.parts:
            assert b"secret-place" not in path.read_bytes()


def test_a_run_that_leaves_the_stage_out_assumes_nothing_of_the_model(tmp_path, eyes_directory):
    options = {"central_train_steps": 1, "max_train_steps": 0}
    trainer = make_trainer(tmp_path / "model", feature_extractor=eyes_directory, target_epsilon=0.5, **options)
    plan = trainer.describe_plan()
    assert "no frequency features: with 20 records a class" in plan
    assert "looks through" not in plan
    assert "whose features are queried" not in str(finish(trainer)["public_assumptions"])


def test_an_interrupted_run_continues_with_the_same_model_alone(tmp_path, eyes_directory, monkeypatch):
    options = {**STAGE, "checkpointing_steps": 2}
    other = save_vision_model(tiny_dinov2(), tmp_path / "other")
    interrupted(tmp_path / "model", 5, feature_extractor=eyes_directory, **options)
    for extractor in (other, None):
        with pytest.raises(InputError, match="was made with other feature_extractor: resume with the settings"):
            make_trainer(tmp_path / "model", feature_extractor=extractor, resume_from_checkpoint="latest", **options)
    monkeypatch.setattr(PerceptualFeatureQuery, "release", lambda *_: pytest.fail("queried a second time"))
    resumed = {"feature_extractor": eyes_directory, "resume_from_checkpoint": "latest", **options}
    assert [entry["steps"] for entry in finish(make_trainer(tmp_path / "model", **resumed))["mechanisms"]] == [5, 1, 4]


def test_what_was_released_belongs_to_its_model_also_without_a_checkpoint(tmp_path, eyes_directory):
    options = {**STAGE, "central_statistic": "none"}
    interrupted(tmp_path / "model", 2, feature_extractor=eyes_directory, **options)
    for checkpoint in (tmp_path / "model" / "private" / "checkpoints").glob("checkpoint-*"):
        checkpoint.rename(tmp_path / checkpoint.name)
    other = save_vision_model(tiny_dinov2(), tmp_path / "other")
    resumed = {"resume_from_checkpoint": "latest", **options}
    with pytest.raises(InputError, match="are those of a local model as it was at that time: give the same"):
        make_trainer(tmp_path / "model", feature_extractor=other, **resumed)
    with pytest.raises(InputError, match="give the same `feature_extractor`"):
        make_trainer(tmp_path / "model", **resumed)


def test_a_model_on_the_hub_is_named(hub, tmp_path, monkeypatch, eyes_directory):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    HfApi().create_repo("eyes")
    HfApi().upload_folder(folder_path=eyes_directory, repo_id="alice/eyes")
    options = {**STAGE, "max_train_steps": 0, "central_statistic": "none"}
    trainer = make_trainer(tmp_path / "model", feature_extractor="alice/eyes", **options)
    privacy = finish(trainer)
    assumed = ASSUMED.format("alice/eyes on the Hub")
    assert assumed in privacy["public_assumptions"]
    assert read_released(tmp_path / "model" / "private" / "journal.jsonl").header["public_models"] == [assumed]
    assert "features of alice/eyes on the Hub." in ModelCard.load(trainer.output_dir / "README.md").text
    assert json.loads((trainer.output_dir / "privacy.json").read_text()) == privacy


def test_the_command_refuses_a_wrong_name_before_anything_else(tmp_path, capsys):
    flags = ["train", "--dataset_name", "digits", "--output_dir", str(tmp_path / "model")]
    assert cli.main([*flags, "--feature_extractor", str(tmp_path)]) == 1
    assert "cannot be loaded as a vision model of transformers" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert cli.main([*flags, "--feature_extractor", str(tmp_path / "file")]) == 1
    assert "is neither the directory of a vision model nor one on the Hub" in capsys.readouterr().err
