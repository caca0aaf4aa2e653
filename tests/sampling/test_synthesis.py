"""Synthetic data sets: their content, loading them, and interrupted generation."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from diffusers.utils import dynamic_modules_utils

from diffusers_dp_curriculum import cli
from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.sampling.pipeline import ClassConditionalPipeline
from diffusers_dp_curriculum.sampling.synthesis import apportion, generate_dataset
from helpers import unet_without_attention, write_privacy_json


FORMATS = ("parquet", "imagefolder")

# Not in alphabetical order, and difficult as folder names: "test" names a split, and "/" cannot be in a name.
NAMES = ["shoe", "test", "T-shirt/top"]


def make_pipeline(id2label=None, channels=1, num_class_embeds=4, seed=0):
    torch.manual_seed(seed)
    unet = unet_without_attention(channels=channels, num_class_embeds=num_class_embeds)
    scheduler = DDPMScheduler(num_train_timesteps=20)
    if num_class_embeds is None:
        pipe = DDPMPipeline(unet, scheduler)
    else:
        pipe = ClassConditionalPipeline(unet, scheduler, id2label=id2label)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, output_dir=None, images_per_class=5, **kwargs):
    """Five images of each class in batches of four: shards of 4, 4, 4 and 3 rows."""
    settings = {"batch_size": 4, "num_inference_steps": 2, **kwargs}
    return generate_dataset(pipe, images_per_class, output_dir=output_dir, **settings)


def pixels(dataset):
    return np.stack([np.asarray(image) for image in dataset["image"]])


def files(directory):
    """The content of all files by name, without the random line that makes each directory unique."""
    return {
        str(path.relative_to(directory)): re.sub(rb"\n  description: .*", b"", path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def pipe():
    return make_pipeline(id2label=dict(enumerate(NAMES)))


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Keep the caches of `datasets` and diffusers below `tmp_path`."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def test_in_memory(pipe):
    dataset = generate(pipe)
    assert dataset.features == datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    assert list(dataset["label"]) == [0, 1, 2] * 5
    assert {(image.mode, image.size) for image in dataset["image"]} == {("L", (8, 8))}


def test_given_numbers_of_images_are_spread_evenly(pipe, tmp_path):
    dataset = generate(pipe, tmp_path / "data", images_per_class=[6, 0, 2])
    assert list(dataset["label"]) == [0, 0, 2, 0, 0, 0, 2, 0]
    assert dataset.features["label"].names == NAMES
    with pytest.raises(InputError, match=r"other settings \(images_per_class\)"):
        generate(pipe, tmp_path / "data", images_per_class=[5, 1, 2])


def test_images_are_shared_out_in_proportion():
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(7, [0.5, 0, 99.5]) == [0, 0, 7]
    assert apportion(1000, [20.5, 59.5, 20.0]) == [205, 595, 200]
    for weights in ([0, 0], [1, -1], [float("inf"), 1], [float("nan"), 1]):
        with pytest.raises(InputError, match="cannot have the weights"):
            apportion(10, weights)


def test_the_images_are_those_of_the_pipeline(pipe):
    dataset = generate(pipe, guidance_scale=2.0, seed=3)
    shard_seed = int(np.random.SeedSequence([3, 1]).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(shard_seed)
    images = pipe([1, 2, 0, 1], guidance_scale=2.0, num_inference_steps=2, generator=generator).images
    np.testing.assert_array_equal(pixels(dataset)[4:8], np.stack(images))


def test_the_seed_chooses_the_sample(pipe):
    first = pixels(generate(pipe))
    np.testing.assert_array_equal(first, pixels(generate(pipe)))
    assert (first != pixels(generate(pipe, seed=1))).any()
    assert len(np.unique(first, axis=0)) == len(first)  # no shard repeats another


@pytest.mark.parametrize("file_format", FORMATS)
def test_load_dataset_gives_back_the_same(pipe, tmp_path, file_format):
    in_memory = generate(pipe)
    returned = generate(pipe, tmp_path / "data", file_format=file_format)
    loaded = datasets.load_dataset(str(tmp_path / "data"))

    assert list(loaded) == ["train"]
    for dataset in (returned, loaded["train"]):
        assert dataset.features == in_memory.features
        assert list(dataset["label"]) == list(in_memory["label"])
        np.testing.assert_array_equal(pixels(dataset), pixels(in_memory))


def test_the_layout_on_disk(pipe, tmp_path):
    generate(pipe, tmp_path / "parquet")
    assert sorted(files(tmp_path / "parquet")) == [
        *(f"data/train-0000{index}-of-00004.parquet" for index in range(4)),
        "generation.json",
    ]

    generate(pipe, tmp_path / "folder", file_format="imagefolder")
    names = [Path(name) for name in files(tmp_path / "folder") if name.endswith(".png")]
    assert Counter(str(name.parent) for name in names) == {"train/shoe": 5, "train/test": 5, "train/T-shirt_top": 5}
    assert sorted(name.name for name in names) == [f"{row:05d}.png" for row in range(15)]


class PowerCutError(Exception):
    """The power is cut."""


@pytest.mark.parametrize("file_format", FORMATS)
def test_an_interruption_leaves_no_trace(pipe, tmp_path, file_format):
    generate(pipe, tmp_path / "whole", file_format=file_format)

    calls = []

    def cut_the_power(module, args):
        calls.append(1)
        if len(calls) == 6:  # two steps a shard: within the third shard
            raise PowerCutError

    hook = pipe.unet.register_forward_pre_hook(cut_the_power)
    with pytest.raises(PowerCutError):
        generate(pipe, tmp_path / "resumed", file_format=file_format)
    hook.remove()
    some = files(tmp_path / "resumed")
    assert 0 < len(some) < len(files(tmp_path / "whole"))

    hook = pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(1))
    generate(pipe, tmp_path / "resumed", file_format=file_format)
    assert len(calls) == 6 + 2 * 2  # the two shards that were missing
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")

    generate(pipe, tmp_path / "resumed", file_format=file_format)
    assert len(calls) == 6 + 2 * 2  # nothing was missing
    hook.remove()


def test_a_reloaded_pipeline_takes_up_the_same_data_set(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    generate(pipe, tmp_path / "data")
    (tmp_path / "data" / "data" / "train-00002-of-00004.parquet").unlink()
    before = files(tmp_path / "data")

    reloaded = ClassConditionalPipeline.from_pretrained(tmp_path / "model")
    reloaded.set_progress_bar_config(disable=True)
    generate(reloaded, tmp_path / "data")
    assert files(tmp_path / "data").items() > before.items()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"batch_size": 5},
        {"num_inference_steps": 3},
        {"guidance_scale": 2.0},
        {"file_format": "imagefolder"},
        {"pipe": make_pipeline(dict(enumerate(NAMES)), seed=1)},
        {"pipe": make_pipeline()},
    ],
)
def test_another_data_set_in_the_directory_is_refused(pipe, tmp_path, change):
    generate(pipe, tmp_path / "data")
    before = files(tmp_path / "data")
    with pytest.raises(InputError, match="other settings"):
        generate(**{"pipe": pipe, "output_dir": tmp_path / "data", **change})
    assert files(tmp_path / "data") == before


def test_another_scheduler_is_another_data_set(pipe, tmp_path):
    generate(pipe, tmp_path / "data")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(InputError, match="scheduler"):
        generate(pipe, tmp_path / "data")


def test_a_directory_with_other_files_is_refused(pipe, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match="empty directory"):
            generate(pipe, place)


def test_a_first_batch_that_fails_does_not_bind_the_directory(pipe, tmp_path):
    def out_of_memory(module, args):
        raise torch.OutOfMemoryError

    hook = pipe.unet.register_forward_pre_hook(out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        generate(pipe, tmp_path / "data", batch_size=15)
    hook.remove()
    assert len(generate(pipe, tmp_path / "data", batch_size=3)) == 15


def test_nothing_is_generated_for_publication_from_a_run_that_is_not_private(pipe, tmp_path):
    privacy_json = write_privacy_json(tmp_path / "privacy.json", private=False, remarks=["NOT PRIVATE: a test."])
    with pytest.raises(InputError, match="may not be published.*NOT PRIVATE: a test"):
        generate(pipe, tmp_path / "data", privacy_json=privacy_json)
    assert not (tmp_path / "data").exists()


def test_privacy_json_goes_with_the_data(pipe, tmp_path):
    privacy_json = write_privacy_json(tmp_path / "privacy.json")
    for file_format in FORMATS:
        generate(pipe, tmp_path / file_format, file_format=file_format, privacy_json=privacy_json)
        assert (tmp_path / file_format / "privacy.json").read_bytes() == privacy_json.read_bytes()
        assert len(datasets.load_dataset(str(tmp_path / file_format))["train"]) == 15


@pytest.mark.parametrize("file_format", FORMATS)
def test_unconditional_pipeline(tmp_path, file_format):
    pipe = make_pipeline(num_class_embeds=None, channels=3)
    in_memory = generate(pipe)
    generate(pipe, tmp_path / "data", file_format=file_format)
    loaded = datasets.load_dataset(str(tmp_path / "data"), split="train")

    assert in_memory.features == loaded.features == datasets.Features({"image": datasets.Image()})
    assert pixels(loaded).shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(pixels(loaded), pixels(in_memory))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"images_per_class": 0}, "images_per_class"),
        ({"images_per_class": [1, 2]}, "2 numbers for 3 classes"),
        ({"images_per_class": [1, 2, -1]}, "images_per_class"),
        ({"images_per_class": [0, 0, 0]}, "images_per_class"),
        ({"pipe": make_pipeline(num_class_embeds=None), "images_per_class": [5]}, "no classes"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 21}, "`num_inference_steps` is 21: give 1 to 20"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"seed": -1}, "seed"),
        ({"file_format": "csv"}, "file_format"),
        ({"privacy_json": "nowhere.json"}, "nowhere.json"),
        ({"privacy_json": "nowhere/privacy.json", "output_dir": "data"}, "nowhere"),
        ({"pipe": make_pipeline(num_class_embeds=None), "guidance_scale": 2.0}, "no classes to guide to"),
    ],
)
def test_refusals(pipe, tmp_path, monkeypatch, kwargs, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        generate(**{"pipe": pipe, **kwargs})
    assert list(tmp_path.iterdir()) == []


def test_the_script(pipe, tmp_path, monkeypatch, capsys):
    """In a process of its own; what it refuses, in this one."""
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "pipeline.py").write_text("raise RuntimeError('code of the directory was run')")
    write_privacy_json(tmp_path / "model" / "privacy.json")
    arguments = ["generate", "model", "--images_per_class", "5", "--output_dir", "out", "--batch_size", "4"]
    arguments += ["--num_inference_steps", "2", "--guidance_scale", "1.5", "--scheduler", "DDIMScheduler"]

    done = subprocess.run(
        [sys.executable, "-m", "diffusers_dp_curriculum.cli", *arguments, "--seed", "7"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "15 images of 3 classes in out" in done.stdout
    assert (tmp_path / "out" / "privacy.json").read_bytes() == (tmp_path / "model" / "privacy.json").read_bytes()
    settings = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert settings["scheduler"]["_class_name"] == "DDIMScheduler"
    assert (settings["seed"], settings["guidance_scale"]) == (7, 1.5)
    assert len(datasets.load_dataset(str(tmp_path / "out"), split="train")) == 15

    monkeypatch.chdir(tmp_path)
    assert cli.main([*arguments, "--seed", "8"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("repeat the settings in its generation.json.")


def test_the_script_without_a_pipeline(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate", "nowhere", "--images_per_class", "1", "--output_dir", "out"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: nowhere is neither")
