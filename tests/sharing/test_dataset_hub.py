"""Synthetic data sets on the Hub: pushed and loaded by the real clients."""

import json
import re
import subprocess
import sys

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import DatasetCard, HfApi

from diffusers_dp_curriculum import (
    CentralImageDataset,
    ClassConditionalPipeline,
    FrequencyImageDataset,
    InputError,
    Mechanism,
    cli,
    generate_dataset,
)
from diffusers_dp_curriculum.commands import generate
from helpers import tiny_scheduler, tiny_unet, write_privacy_json


NAMES = ["sneaker", "ankle boot", "bag"]


@pytest.fixture
def pipe():
    pipe = ClassConditionalPipeline(tiny_unet(), tiny_scheduler(), id2label=dict(enumerate(NAMES)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(hub, tmp_path, code):
    """Load `alice/shoes` in a process of its own, and run `code` on it."""
    program = f"import datasets\ndataset = datasets.load_dataset('alice/shoes', split='train')\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=hub.environment(tmp_path / "hf"),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("file_format", ["parquet", "imagefolder"])
def test_load_dataset_gives_back_what_was_pushed(hub, pipe, tmp_path, file_format):
    privacy_json = write_privacy_json(tmp_path / "privacy.json")
    options = {"num_inference_steps": 2, "privacy_json": privacy_json}
    dataset = generate_dataset(pipe, [3, 1, 2], output_dir=tmp_path / "data", file_format=file_format, **options)
    commit = dataset.push_to_hub("shoes")
    files = hub.files("alice/shoes", "dataset")
    assert sorted(files) == [".gitattributes", "README.md", "data/train-00000-of-00001.parquet", "privacy.json"]
    assert json.loads(files["privacy.json"]) == json.loads(privacy_json.read_text())
    assert str(tmp_path).encode() not in b"".join(files.values())
    assert [made.title for made in hub.commits("alice/shoes", "dataset")] == [commit.commit_message]

    code = """
import numpy as np
print(dataset.features["label"].names, list(dataset["label"]), type(dataset.features["image"]))
np.save("pixels.npy", np.stack(dataset["image"]))
"""
    printed = load(hub, tmp_path, code)
    assert printed == f"{NAMES} {list(dataset['label'])} <class 'datasets.features.image.Image'>\n"
    np.testing.assert_array_equal(np.load(tmp_path / "pixels.npy"), np.stack(dataset["image"]))

    card = DatasetCard(files["README.md"].decode())
    epsilon = json.loads(privacy_json.read_text())["epsilon"]
    stated = re.search(r"\(([\d.]+), 1e-05\)-differentially private with respect to zeroing out one record", card.text)
    assert epsilon <= float(stated[1]) <= 1.001 * epsilon
    assert {"synthetic", "differential-privacy"} <= set(card.data.tags)
    assert 'load_dataset("alice/shoes", split="train")' in card.text
    assert "| 1 | ankle boot | 1 |" in card.text


def test_a_smaller_data_set_leaves_nothing_of_a_larger_one(hub, pipe, tmp_path, monkeypatch):
    options = {"num_inference_steps": 1, "privacy_json": write_privacy_json(tmp_path / "privacy.json")}
    with monkeypatch.context() as patch:
        patch.setattr("diffusers_dp_curriculum.sampling.synthesis.MAX_SHARD_BYTES", 300)
        generate_dataset(pipe, 3, **options).push_to_hub("shoes")
    many = [name for name in hub.files("alice/shoes", "dataset") if name.startswith("data/")]
    assert len(many) > 1
    assert sum(len(pq.read_table(hub_file(hub, name, tmp_path))) for name in many) == 9
    hub.edit("alice/shoes", "README.md", hub.files("alice/shoes", "dataset")["README.md"] + b"\nMine.\n", "dataset")
    generate_dataset(pipe, 2, **options).push_to_hub("shoes")
    assert "Mine." in hub.files("alice/shoes", "dataset")["README.md"].decode()
    assert "6 images, each" in hub.files("alice/shoes", "dataset")["README.md"].decode()
    assert load(hub, tmp_path, "print(len(dataset))") == "6\n"


def hub_file(hub, name, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(hub.files("alice/shoes", "dataset")[name])
    return path


def test_images_of_unknown_privacy_are_not_pushed(hub, pipe):
    with pytest.raises(InputError, match="budget of the model is not known"):
        generate_dataset(pipe, 1, num_inference_steps=1).push_to_hub("shoes")
    assert not hub.requests


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (None, "has no privacy.json, and images may not be published"),
        ({"private": False}, "not private and may not be published"),
        ({"epsilon": 0.1}, "states epsilon 0.1, but its mechanisms amount to"),
    ],
)
def test_the_script_creates_no_repository_for_what_may_not_be_pushed(
    hub, pipe, tmp_path, monkeypatch, statement, message
):
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("model")
    if statement is not None:
        write_privacy_json(tmp_path / "model" / "privacy.json", **statement)
    arguments = ["model", "--images_per_class", "1", "--num_inference_steps", "1"]
    with pytest.raises(InputError, match=message):
        generate.main([*arguments, "--output_dir", "shoes", "--push_to_hub"])
    assert not hub.repos
    assert not (tmp_path / "shoes").exists()


def test_the_script_does_not_replace_real_images_of_the_same_name(hub, pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("model")
    write_privacy_json(tmp_path / "model" / "privacy.json")
    HfApi().create_repo("shoes", repo_type="dataset")
    for split in ("train", "test"):
        hub.edit("alice/shoes", f"data/{split}-00000-of-00001.parquet", b"real", "dataset")
    before = hub.files("alice/shoes", "dataset")
    arguments = ["model", "--images_per_class", "1", "--num_inference_steps", "1"]
    with pytest.raises(InputError, match="alice/shoes holds data/.* and no privacy.json"):
        generate.main([*arguments, "--output_dir", "shoes", "--push_to_hub"])
    assert not (tmp_path / "shoes").exists()
    assert hub.files("alice/shoes", "dataset") == before


def test_the_script_shares_images_out_by_the_released_counts_and_pushes(hub, pipe, tmp_path, monkeypatch, capsys):
    pipe.save_pretrained(tmp_path / "model")
    write_privacy_json(tmp_path / "model" / "privacy.json")
    entry = Mechanism("central_images_mean", 5.0, 0.1, 5, 4.0)
    zeros, private = torch.zeros(3, 1, 8, 8), tmp_path / "model" / "private"
    central = CentralImageDataset(zeros, torch.arange(3), entry, NAMES, class_counts=[30.0, 10.0, 20.0])
    central.save_to_disk(private / "central_images")
    monkeypatch.chdir(tmp_path)
    arguments = ["model", "--images_per_class", "2", "--class_balance", "dp_counts", "--num_inference_steps", "2"]
    assert cli.run("generate", [*arguments, "--output_dir", "shoes", "--push_to_hub", "--hub_private_repo"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"Pushed to {hub.url}/datasets/alice/shoes/commit/")
    assert hub.repos["dataset", "alice/shoes"].private
    assert "private/" not in " ".join(hub.files("alice/shoes", "dataset"))
    table = datasets.load_dataset(str(tmp_path / "shoes"), split="train")
    assert sorted(table["label"]) == [0, 0, 0, 1, 2, 2]

    query = Mechanism("frequency_features", 5.0, 1.0, 1, 1.05)
    frequency = FrequencyImageDataset(zeros, torch.arange(3), query, NAMES, class_counts=[10.0, 40.0, 10.0])
    frequency.save_to_disk(private / "frequency_images")
    assert generate.main([*arguments, "--output_dir", "boots"]) == 0
    assert sorted(datasets.load_dataset(str(tmp_path / "boots"), split="train")["label"]) == [0, 1, 1, 1, 1, 2]


def test_a_run_without_noisy_counts_cannot_share_images_out_by_them(tmp_path):
    central = CentralImageDataset(
        torch.zeros(3, 1, 8, 8), torch.arange(3), Mechanism("central_images_mode", 5.0, 0.1, 5, 4.0), NAMES
    )
    for directory in ("none", "mode"):
        (tmp_path / directory).mkdir()
    central.save_to_disk(tmp_path / "mode" / "private" / "central_images")
    for directory in ("none", "mode"):
        with pytest.raises(InputError, match="holds no noisy class counts"):
            generate.share_out([2], "dp_counts", str(tmp_path / directory))


def test_the_card_follows_what_is_left_of_the_data_set(hub, pipe, tmp_path):
    options = {"num_inference_steps": 1, "privacy_json": write_privacy_json(tmp_path / "privacy.json")}
    generate_dataset(pipe, 2, **options).remove_columns("label").push_to_hub("shoes")
    card = hub.files("alice/shoes", "dataset")["README.md"].decode()
    assert "differentially private" in card
    assert "ankle boot" not in card
    assert "image-classification" not in card
