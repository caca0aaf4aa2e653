"""The command `dp-curriculum evaluate`."""

import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from PIL import Image

from diffusers_dp_curriculum import (
    ClassConditionalPipeline,
    DPCurriculumError,
    InputError,
    generate_dataset,
    load_image_dataset,
)
from diffusers_dp_curriculum.checks import CLASSIFIER
from diffusers_dp_curriculum.commands import evaluate
from diffusers_dp_curriculum.evaluation.utility import ARCHITECTURES
from diffusers_dp_curriculum.sharing.hub import MODEL_FILES, publishable_files
from helpers import tiny_scheduler, tiny_unet, write_privacy_json


QUICK = ["--features", "pixels", "--classifiers", "cnn", "--epochs", "1"]


def run(*arguments, cwd):
    command = [sys.executable, "-m", "diffusers_dp_curriculum.cli", "evaluate", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The directory of a pipeline with ten classes, and of its privacy.json."""
    directory = tmp_path_factory.mktemp("run") / "model"
    ClassConditionalPipeline(tiny_unet(num_classes=10), tiny_scheduler()).save_pretrained(directory)
    write_privacy_json(directory / "privacy.json")
    return directory


def test_a_pipeline_is_sampled_and_compared_and_the_report_is_never_published(model, tmp_path):
    for name in ("README.md", "samples.png"):  # what a finished run has besides
        (model / name).touch()
    before = publishable_files(model, MODEL_FILES)
    sampling = ["--images_per_class", "3", "--num_inference_steps", "2"]
    done = run(model, "--reference", "digits", *QUICK, *sampling, "--output_dir", model / "evaluation", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    assert "accuracy (cnn)" in done.stdout
    assert "[1] samples: 30 samples, 297 real test images" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("NOT PRIVATE.")
    report = json.loads((model / "evaluation" / "report.json").read_text())
    assert report["not_private"] is True
    assert "split test (real test images)" in report["about"]["reference"]
    assert report["about"]["privacy"].endswith("this report is not covered by it")
    assert report["images"] == {"samples": 30, "real_train": 1500, "real_test": 297}
    assert (model / "evaluation" / "report.html").stat().st_size > 10_000
    assert publishable_files(model, MODEL_FILES) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "-differentially private, as"),
        ({"epsilon": 0.1}, "not for sharing"),
        ({"private": False}, "not for sharing"),
    ],
)
def test_the_budget_of_the_samples_is_recomputed(changes, said, tmp_path):
    write_privacy_json(tmp_path / "privacy.json", **changes)
    arguments = evaluate.make_parser().parse_args([str(tmp_path), "--reference", "digits"])
    assert said in evaluate.describe(arguments, 1, 8, None)["privacy"]


def test_the_budget_of_a_data_set_on_the_hub_is_found(hub, model, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    pipeline = ClassConditionalPipeline.from_pretrained(model)
    dataset = generate_dataset(pipeline, 1, num_inference_steps=1, privacy_json=model / "privacy.json")
    dataset.push_to_hub("shoes")
    for name, said in (("alice/shoes", "-differentially private, as"), ("digits", "nothing is known")):
        arguments = evaluate.make_parser().parse_args([name, "--reference", "digits"])
        assert said in evaluate.describe(arguments, 1, 8, None)["privacy"]


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["parquet", "imagefolder"])
def test_a_generated_data_set_is_compared_with_a_folder_of_images(file_format, model, tmp_path):
    pipeline = ClassConditionalPipeline.from_pretrained(model)
    generate_dataset(pipeline, 3, output_dir=tmp_path / "data", file_format=file_format, num_inference_steps=1)
    for split in ("train", "test"):
        digits = load_image_dataset(dataset_name="digits", split=split)
        for index, (image, label) in enumerate(zip(digits.images[:100], digits.labels[:100], strict=True)):
            folder = tmp_path / "real" / split / str(int(label))
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).resize((20, 20)).save(folder / f"{index}.png")
    done = run(tmp_path / "data", "--reference", tmp_path / "real", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "dp-evaluation" / "report.json").read_text())
    assert report["images"] == {"samples": 30, "real_train": 100, "real_test": 100}
    assert report["about"]["privacy"] == "nothing is known about the privacy of the samples"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reference", "digits", "--test_split", "train"], "give another `test_split`"),
        (["--reference", "digits", "--test_split", "later"], "pass 'train' or 'test'"),
        (["--reference", "digits", "--features", "nowhere/at/all"], "cannot be loaded as a vision model"),
        (["--reference", "digits", "--scheduler", "Magic"], "is Magic: choose one of"),
        (["--reference", "digits", "--class_names", *"abcdefghij"], "name the real ones alike"),
        (["--reference", "digits", "--output_dir", str(Path(__file__).parent)], "choose another as `output_dir`"),
        (["--reference", "."], "dp-evaluation is in the directory of the data set"),
        (
            ["--reference", ".", "--output_dir", "../report"],
            "holds no images: pass the directory with the images as `reference`",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_sampled_or_written(
    arguments, message, model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DPCurriculumError, match=message):
        evaluate.main([str(model), *QUICK, *arguments])
    assert list(tmp_path.iterdir()) == []


def test_what_is_neither_pipeline_nor_data_set_is_refused(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="There is no data set nobody/nothing on the Hub"):
        evaluate.main(["nobody/nothing", "--reference", "digits", *QUICK])


def test_the_flag_knows_all_classifiers():
    assert CLASSIFIER.values == tuple(ARCHITECTURES)
