"""The class-conditional pipeline: its samples, and loading it where this package is not installed."""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.utils import dynamic_modules_utils

from diffusers_dp_curriculum.sampling import pipeline as pipeline_module
from diffusers_dp_curriculum.sampling.pipeline import ClassConditionalPipeline
from helpers import unet_without_attention
from helpers.autoencoders import AUTOENCODERS, tiny_kl


NAMES = {0: "ankle boot", 1: "bag", 2: "T-shirt/top"}


def make_unet(channels=1, num_class_embeds=4):
    torch.manual_seed(0)
    unet = unet_without_attention(channels=channels, num_class_embeds=num_class_embeds)
    # The default class embeddings are too small for a class to show in the images.
    if num_class_embeds:
        torch.nn.init.normal_(unet.class_embedding.weight, std=10.0)
    return unet


def make_pipeline(scheduler=None, channels=1, id2label=NAMES, vae=None):
    scheduler = scheduler or DDPMScheduler(num_train_timesteps=100)
    pipe = ClassConditionalPipeline(make_unet(channels), scheduler, id2label=id2label, vae=vae)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, labels=(0, 1, 2), seed=0, steps=3, output_type="pt", **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return pipe(list(labels), num_inference_steps=steps, generator=generator, output_type=output_type, **kwargs).images


@pytest.fixture(autouse=True)
def module_cache(tmp_path, monkeypatch):
    """Remote code is copied below `tmp_path`, not into the user's cache."""
    cache = str(tmp_path / "modules")
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", cache)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        del sys.modules[name]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_output_types(channels, mode):
    pipe = make_pipeline(channels=channels)
    tensor = sample(pipe)
    array = sample(pipe, output_type="np")
    images = sample(pipe, output_type="pil")

    assert tensor.shape == (3, channels, 8, 8)
    assert array.shape == (3, 8, 8, channels)
    assert [(image.mode, image.size) for image in images] == [(mode, (8, 8))] * 3
    assert tensor.min() >= 0
    assert tensor.max() <= 1
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.stack(images).reshape(array.shape), (array * 255).round().astype("uint8"))


def test_a_plain_tuple_on_request():
    (images,) = make_pipeline()([0, 1], num_inference_steps=1, output_type="pt", return_dict=False)
    assert images.shape == (2, 1, 8, 8)


def test_images_are_not_square_if_the_unet_says_so():
    unet = UNet2DModel(**{**make_unet().config, "sample_size": (8, 16)})
    pipe = ClassConditionalPipeline(unet, DDPMScheduler())
    assert sample(pipe, [0], steps=1).shape == (1, 1, 8, 16)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 2.5])
@torch.no_grad()
def test_guidance_is_the_formula(guidance_scale):
    pipe = make_pipeline()
    images = sample(pipe, guidance_scale=guidance_scale, steps=4)

    generator = torch.Generator().manual_seed(0)
    scheduler = DDPMScheduler(num_train_timesteps=100)
    scheduler.set_timesteps(4)
    x = torch.randn(3, 1, 8, 8, generator=generator)
    for t in scheduler.timesteps:
        cond = pipe.unet(x, t, class_labels=torch.tensor([0, 1, 2])).sample
        uncond = pipe.unet(x, t, class_labels=torch.tensor([3, 3, 3])).sample
        output = uncond + guidance_scale * (cond - uncond)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    torch.testing.assert_close(images, (x / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", AUTOENCODERS)
@torch.no_grad()
def test_latents_are_scaled_back_and_decoded(kind):
    options = {"scaling_factor": 0.5, **({} if kind == "VQModel" else {"shift_factor": 0.3})}
    vae = AUTOENCODERS[kind](**options)
    channels = vae.config.latent_channels
    scheduler = DDPMScheduler(num_train_timesteps=100, clip_sample=False)
    images = sample(make_pipeline(scheduler, channels, vae=vae), steps=2)

    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(2)
    x = torch.randn(3, channels, 8, 8, generator=generator)
    for t in scheduler.timesteps:
        output = make_unet(channels)(x, t, class_labels=torch.tensor([0, 1, 2])).sample
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    decoded = vae.decode(x / 0.5 + (0.0 if kind == "VQModel" else 0.3)).sample
    assert images.shape == (3, 3, 32, 32)
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_many_latents_are_decoded_a_few_at_a_time(monkeypatch):
    vae = tiny_kl()
    pipe = make_pipeline(channels=4, vae=vae)
    whole = sample(pipe, [0, 1, 2, 1, 0], steps=1)
    sizes = []
    vae.decoder.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    monkeypatch.setattr(pipeline_module, "DECODED_AT_ONCE", 2)
    torch.testing.assert_close(sample(pipe, [0, 1, 2, 1, 0], steps=1), whole, rtol=1e-4, atol=1e-4)
    assert sizes == [2, 2, 1]


def test_guidance_costs_one_doubled_batch_and_nothing_without_it():
    pipe = make_pipeline()
    batches = []
    pipe.unet.register_forward_hook(lambda module, args, output: batches.append(len(args[0])))
    sample(pipe, steps=2, guidance_scale=1.0)
    sample(pipe, steps=2, guidance_scale=3.0)
    assert batches == [3, 3, 6, 6]


def test_names_are_labels():
    pipe = make_pipeline()
    assert pipe.class_names == ["ankle boot", "bag", "T-shirt/top"]
    assert pipe.get_label_ids(["T-shirt/top", 0, "bag"]) == [2, 0, 1]
    torch.testing.assert_close(sample(pipe, ["T-shirt/top", "bag"]), sample(pipe, [2, 1]), rtol=0, atol=0)


def test_names_are_numbers_without_id2label():
    pipe = make_pipeline(id2label=None)
    assert pipe.class_names == ["0", "1", "2"]
    assert pipe.get_label_ids(["2", 1]) == [2, 1]


def test_the_generator_decides_the_images_and_the_label_matters():
    pipe = make_pipeline()
    torch.testing.assert_close(sample(pipe, seed=1), sample(pipe, seed=1), rtol=0, atol=0)
    assert not torch.equal(sample(pipe, seed=1), sample(pipe, seed=2))
    assert not torch.equal(sample(pipe, [0]), sample(pipe, [1]))


def test_one_generator_an_image():
    pipe = make_pipeline()
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 5, 6)]
    images = pipe([1, 1, 1], num_inference_steps=2, generator=generators, output_type="pt").images
    torch.testing.assert_close(images[0], images[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(images[0], images[2])


@pytest.mark.parametrize(
    "scheduler_class",
    [
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        UniPCMultistepScheduler,
        EDMEulerScheduler,
        EDMDPMSolverMultistepScheduler,
    ],
)
@torch.no_grad()
def test_any_scheduler(scheduler_class):
    compatible = scheduler_class in DDPMScheduler().compatibles
    scheduler = scheduler_class.from_config(DDPMScheduler(num_train_timesteps=100).config if compatible else {})
    pipe = make_pipeline(scheduler)
    images = sample(pipe, steps=5)

    scheduler = scheduler_class.from_config(scheduler.config)
    scheduler.set_timesteps(5)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = pipe.unet(scheduler.scale_model_input(x, t), t, class_labels=torch.tensor([0, 1, 2])).sample
        x = scheduler.step(output, t, x).prev_sample
    torch.testing.assert_close(images, (x / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@torch.no_grad()
def test_churn_is_the_stochastic_sampler_of_karras(guidance_scale):
    """Algorithm 2 of arXiv:2206.00364 with Euler steps, by its formulas."""
    sigma_data, steps, s_churn, s_tmin, s_tmax = 0.5, 6, 2.0, 0.1, 20.0
    pipe = make_pipeline(EDMEulerScheduler(sigma_data=sigma_data))
    options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "guidance_scale": guidance_scale}
    images = sample(pipe, steps=steps, **options)
    labels = torch.tensor([0, 1, 2])

    def denoise(x, sigma):
        noise_label = sigma.log() / 4
        inputs = x / (sigma**2 + sigma_data**2) ** 0.5
        cond, uncond = (
            pipe.unet(inputs, noise_label, class_labels=some).sample for some in (labels, torch.full_like(labels, 3))
        )
        output = uncond + guidance_scale * (cond - uncond)
        return (sigma_data**2 * x + sigma * sigma_data * output * (sigma**2 + sigma_data**2) ** 0.5) / (
            sigma**2 + sigma_data**2
        )

    generator = torch.Generator().manual_seed(0)
    sigmas = (80 ** (1 / 7) + torch.arange(steps) / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    x = torch.randn(3, 1, 8, 8, generator=generator) * (80**2 + 1) ** 0.5
    churned = 0
    for sigma, following in zip(sigmas, [*sigmas[1:], torch.zeros(())], strict=True):
        sigma_hat = sigma
        if s_tmin <= sigma <= s_tmax:
            sigma_hat = sigma * (1 + min(s_churn / steps, 2**0.5 - 1))
            x = x + (sigma_hat**2 - sigma**2) ** 0.5 * torch.randn(x.shape, generator=generator)
            churned += 1
        x = x + (following - sigma_hat) * (x - denoise(x, sigma_hat)) / sigma_hat
    assert churned == 2
    torch.testing.assert_close(images, (x / 2 + 0.5).clamp(0, 1), rtol=1e-3, atol=1e-3)
    # The levels that were raised are not left behind in the scheduler.
    torch.testing.assert_close(sample(pipe, steps=steps, **options), images, rtol=0, atol=0)


def test_with_churn_the_network_is_told_the_level_that_its_input_has():
    """The noise label has to be that of the raised level (algorithm 2, line 7), as the scale of the input is."""
    sigma_data, steps, s_churn = 0.5, 8, 3.0
    scheduler = EDMEulerScheduler(sigma_data=sigma_data)
    pipe = make_pipeline(scheduler)
    scheduler.set_timesteps(steps)
    levels = scheduler.sigmas[:-1].tolist()
    labels = []
    pipe.unet.register_forward_pre_hook(lambda _, inputs: labels.append(float(inputs[1])))
    pipe([0], num_inference_steps=steps, s_churn=s_churn, output_type="pt")
    raised = [level * (1 + (min(s_churn / steps, 2**0.5 - 1) if 0.05 <= level <= 50 else 0)) for level in levels]
    assert labels == pytest.approx([math.log(level) / 4 for level in raised], abs=1e-5)
    assert raised != levels


def deviation_by_algorithm_2(deviation, scheduler, steps, s_churn):
    """The deviation of samples if pixels are normally distributed, for the exact denoiser and Euler steps."""
    scheduler.set_timesteps(steps)
    variance = float(scheduler.init_noise_sigma) ** 2
    for sigma, following in itertools.pairwise(scheduler.sigmas.double().tolist()):
        raised = sigma * (1 + (min(s_churn / steps, 2**0.5 - 1) if 0.05 <= sigma <= 50 else 0))
        variance += raised**2 - sigma**2
        variance *= (1 + (following - raised) * raised / (raised**2 + deviation**2)) ** 2
    return variance**0.5


@pytest.mark.parametrize("s_churn", [0.0, 40.0])
def test_samples_of_a_known_distribution_have_the_deviation_that_the_algorithm_gives_them(s_churn):
    deviation = 0.3
    scheduler = EDMEulerScheduler(sigma_data=deviation)
    assert deviation_by_algorithm_2(deviation, scheduler, 1000, s_churn) == pytest.approx(deviation, rel=0.02)
    pipe = make_pipeline(scheduler)
    # D = x deviation^2 / (sigma^2 + deviation^2) is c_skip x, so the network has to answer 0.
    torch.nn.init.zeros_(pipe.unet.conv_out.weight)
    torch.nn.init.zeros_(pipe.unet.conv_out.bias)
    images = sample(pipe, [0] * 100, steps=60, s_churn=s_churn)
    expected = deviation_by_algorithm_2(deviation, scheduler, 60, s_churn)
    assert (images * 2 - 1).std() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("labels", "kwargs", "message"),
    [
        ([], {}, "class_labels"),
        ([3], {}, "0 to 2"),  # the null class is not a class
        ([-1], {}, "0 to 2"),
        ([0, "shoe"], {}, "'T-shirt/top'"),
        ("bag", {}, "list"),
        (2, {}, "`class_labels` is 2: give a list of ids from 0 to 2 or of names"),
        (None, {}, "list"),
        ([[0, 1]], {}, "list"),
        (torch.tensor(1), {}, "`class_labels` is 1: give a list"),
        ([0], {"guidance_scale": -0.5}, "guidance_scale"),
        ([0], {"guidance_scale": float("nan")}, "guidance_scale"),
        ([0], {"num_inference_steps": 0}, "num_inference_steps"),
        ([0], {"output_type": "latent"}, "output_type"),
        ([0], {"s_churn": 1.0}, "EDMEulerScheduler"),
        ([0], {"s_churn": -1.0}, "s_churn"),
    ],
)
def test_refusals(labels, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline()(labels, **kwargs)


def test_labels_may_be_a_tensor_or_an_array():
    labels = [1, 0, 2]
    for form in (torch.tensor(labels), np.array(labels), tuple(labels)):
        assert make_pipeline().get_label_ids(form) == labels


def test_an_unconditional_unet_is_refused():
    with pytest.raises(ValueError, match="num_class_embeds"):
        ClassConditionalPipeline(make_unet(num_class_embeds=None), DDPMScheduler())


@pytest.mark.parametrize("id2label", [{0: "a", 1: "b"}, {0: "a", 1: "b", 2: "b"}, {1: "a", 2: "b", 3: "c"}])
def test_id2label_must_name_every_class(id2label):
    with pytest.raises(ValueError, match="id2label"):
        make_pipeline(id2label=id2label)


def test_what_is_saved(tmp_path):
    make_pipeline().save_pretrained(tmp_path / "model")

    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "model_index.json",
        "pipeline.py",
        "scheduler",
        "unet",
    ]
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "ClassConditionalPipeline"]
    assert index["id2label"] == {str(class_id): name for class_id, name in NAMES.items()}
    assert (tmp_path / "model" / "pipeline.py").read_text() == Path(pipeline_module.__file__).read_text()


def test_loading_with_this_package_needs_no_trust(tmp_path, capfd):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "pipeline.py").write_text("raise RuntimeError('code of the directory was run')")

    loaded = ClassConditionalPipeline.from_pretrained(tmp_path / "model")
    assert type(loaded) is ClassConditionalPipeline
    assert loaded.config.id2label == NAMES
    assert "Expected types" not in capfd.readouterr().err  # diffusers' warning of keys that JSON made strings
    torch.testing.assert_close(sample(loaded), sample(pipe), rtol=0, atol=0)

    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "model")


def test_remote_code_saves_and_loads_again(tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path / "first")
    remote = DiffusionPipeline.from_pretrained(tmp_path / "first", trust_remote_code=True)
    assert type(remote) is not ClassConditionalPipeline

    # Loading another directory overwrites diffusers' only copy of the first one's code.
    make_pipeline().save_pretrained(tmp_path / "other")
    with (tmp_path / "other" / "pipeline.py").open("a") as file:
        file.write("# a later version\n")
    DiffusionPipeline.from_pretrained(tmp_path / "other", trust_remote_code=True)

    remote.save_pretrained(tmp_path / "second")
    for name in ("pipeline.py", "model_index.json", "unet/diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()

    again = DiffusionPipeline.from_pretrained(tmp_path / "second", trust_remote_code=True)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(sample(again), sample(pipe), rtol=0, atol=0)
    again.save_pretrained(tmp_path / "second")  # over itself
    assert type(ClassConditionalPipeline.from_pretrained(tmp_path / "second")) is ClassConditionalPipeline


def test_another_scheduler_is_saved(tmp_path):
    pipe = make_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "model")
    assert type(ClassConditionalPipeline.from_pretrained(tmp_path / "model").scheduler) is DDIMScheduler


WITHOUT_THE_PACKAGE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "diffusers_dp_curriculum":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
try:
    import diffusers_dp_curriculum
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package can still be imported")

import torch
from diffusers import DiffusionPipeline

for model in sys.argv[1:]:
    pipe = DiffusionPipeline.from_pretrained(model, trust_remote_code=True)
    generator = torch.Generator().manual_seed(0)
    options = {"guidance_scale": 2.0, "num_inference_steps": 3, "generator": generator, "output_type": "pt"}
    torch.save(pipe([0, "bag", 2], **options).images, f"{model}.pt")
    pipe.save_pretrained(f"{model}-saved")
"""


def test_a_stranger_without_this_package_can_sample(tmp_path):
    of_latents = DDPMScheduler(num_train_timesteps=100, clip_sample=False)
    pipes = {
        "ddpm": make_pipeline(),
        "edm": make_pipeline(EDMEulerScheduler()),
        "latents": make_pipeline(of_latents, channels=4, vae=tiny_kl()),
    }
    for name, pipe in pipes.items():
        pipe.save_pretrained(tmp_path / name)
    subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, *pipes],
        check=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf")},
        cwd=tmp_path,
    )
    for name, pipe in pipes.items():
        images = torch.load(tmp_path / f"{name}.pt")
        torch.testing.assert_close(images, sample(pipe, guidance_scale=2.0), rtol=1e-4, atol=1e-4)
        saved = ClassConditionalPipeline.from_pretrained(tmp_path / f"{name}-saved")
        assert saved.class_names == list(NAMES.values())
        assert (saved.vae is None) == (name != "latents")
