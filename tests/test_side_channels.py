"""What is published, printed or raised tells nothing about the records beyond what the mechanisms release."""

import io
import json
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffusers_dp_curriculum import build_scheduler
from diffusers_dp_curriculum.data.image_dataset import load_image_dataset
from diffusers_dp_curriculum.errors import InputError, TrainingError, confidential_errors
from helpers import REPOSITORY


SCRIPT = REPOSITORY / "examples" / "train_dp_curriculum.py"
NUM_RECORDS, EXPECTED_BATCH = 900, 700
NAME, COMMENT = "patient-4711", "diagnosis-0815"

# The script as a user runs it, with an observer that writes down what must not leak.
OBSERVED_RUN = """
import json, runpy, sys
from pathlib import Path

import torch
from diffusers_dp_curriculum.gradients import per_record_gradients
from diffusers_dp_curriculum.mechanisms import dp_sgd

script, notes, breaks, *arguments = sys.argv[1:]
noted = {"batch sizes": [], "losses": [], "norms": []}
batches, set_grad_samples, error_of = [], dp_sgd.DPSGD._set_grad_samples, per_record_gradients.denoising_error

def note_norms(self, piece):
    if breaks == "yes":
        raise RuntimeError(f"a batch of {len(piece)} with patient-4711: {self.records.images[piece[0]]}")
    set_grad_samples(self, piece)
    batches[-1] += len(piece)
    parts = [p.grad_sample.flatten(1) for p in self.model.parameters()]
    noted["norms"] += torch.cat(parts, dim=1).norm(dim=1).tolist()

def note_batch(self, original=dp_sgd.DPSGD.step):
    batches.append(0)
    original(self)

def note_loss(model, draws):
    error = error_of(model, draws)
    noted["losses"].append(float(error))
    return error

dp_sgd.DPSGD._set_grad_samples = note_norms
dp_sgd.DPSGD.step = note_batch
per_record_gradients.denoising_error = note_loss
sys.argv = [script, *arguments]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    noted["batch sizes"] = batches
    Path(notes).write_text(json.dumps(noted))
"""


def write_marked_photos(directory):
    """Write images of noise with marks in their names and metadata; return their pixels, which are marks as well."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (NUM_RECORDS, 8, 8, 3), dtype=np.uint8)
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", COMMENT)
    for number, image in enumerate(pixels):
        path = directory / ["cat", "dog"][number % 2] / f"{NAME}-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, pnginfo=comment)
    return pixels


def observed_run(directory, breaks="no"):
    pixels = write_marked_photos(directory / "photos")
    options = {
        "train_data_dir": "photos",
        "output_dir": "model",
        "accountant": "rdp",
        "block_out_channels": "8",
        "central_train_steps": "2",
        "train_batch_size": EXPECTED_BATCH,
        "max_train_steps": "3",
        "max_physical_batch_size": "128",
        "noise_multiplicity": "1",
        "num_inference_steps": "2",
        "central_noise_multiplier": "20",
        "frequency_features": "40",
        "frequency_noise_multiplier": "20",
        "frequency_generator_steps": "2",
        "frequency_train_steps": "2",
    }
    arguments = [str(text) for name, value in options.items() for text in (f"--{name}", value)]
    command = [sys.executable, "-c", OBSERVED_RUN, SCRIPT, "notes.json", breaks, *arguments]
    environment = {**os.environ, "HF_HOME": str(directory / "hf")}
    finished = subprocess.run(command, capture_output=True, cwd=directory, env=environment)
    published = {
        path.relative_to(directory / "model"): path.read_bytes()
        for path in (directory / "model").rglob("*")
        if path.is_file() and "private" not in path.parts and path.name != ".gitignore"
    }
    return finished, published, json.loads((directory / "notes.json").read_text()), pixels


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return observed_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def outside(run):
    """Every published file, the pixels of every picture, and everything that was printed."""
    finished, published, _, _ = run
    assert finished.returncode == 0, finished.stderr
    assert {str(name) for name in published} >= {"README.md", "privacy.json", "samples.png", "pipeline.py"}
    pictures = {
        f"pixels of {name}": Image.open(io.BytesIO(content)).tobytes()
        for name, content in published.items()
        if name.suffix == ".png"
    }
    return {**published, **pictures, "stdout": finished.stdout, "stderr": finished.stderr}


def places_of(mark, outside):
    return [str(name) for name, content in outside.items() if mark in content]


def test_neither_names_nor_metadata_nor_pixels_get_out(run, outside):
    marks = [NAME.encode(), COMMENT.encode(), b"photos"]
    for row in run[3][:, 3]:  # 8 pixels of each image, as bytes and as the floats that a network gets
        marks += [row.tobytes(), (row[:, 0] / 127.5 - 1).astype(np.float32).tobytes()]
    assert [(mark, places_of(mark, outside)) for mark in marks if places_of(mark, outside)] == []


# Progress bars over all files, and the speed of progress bars (docs/privacy.md explains what speed reveals).
PROGRESS = re.compile(
    rb"(?:Decoding images|Downloading data|Generating train split):[^\r\n]*|[\d:]+<[\d:?]+, +[\d.?]+[^,\]]*"
)

VERSION = re.compile(rb"\d+(?:\.\d+){2,}")  # versions: 2.13 in one of them could look like a norm
RANDOM_NAME = re.compile(rb'"[0-9a-f]{16}"')  # the random name of a run or of a session


def numbers_in(content):
    content = RANDOM_NAME.sub(b"", VERSION.sub(b"", PROGRESS.sub(b"", content)))
    return set(re.findall(r"[-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?", content.decode("latin-1")))


def forms_of(value):
    return {f"{value:.4f}", f"{value:.5f}", f"{value:.6g}", f"{value:.4e}", repr(value)}


def test_neither_losses_nor_norms_nor_batch_sizes_get_out(run, outside):
    noted = run[2]
    assert len(noted["batch sizes"]) == 3
    assert all(size > EXPECTED_BATCH / 2 for size in noted["batch sizes"])
    assert len(noted["norms"]) == sum(noted["batch sizes"])
    assert len(noted["losses"]) >= 15
    secret = {form for size in noted["batch sizes"] for form in (f"{size}", f"{size:,}")}
    secret = secret.union(*map(forms_of, noted["losses"] + noted["norms"]))
    # One of several thousand norms can equal a public number by chance, such as a noise multiplier of 0.7997.
    statement = json.loads(outside[Path("privacy.json")])
    planned = [statement["epsilon"]]
    planned += [
        mechanism[name]
        for mechanism in statement["mechanisms"]
        for name in ("noise_multiplier", "sample_rate", "sensitivity")
    ]
    planned += map(float, re.findall(rb"\(([\d.]+) without the frequency features\)", outside["stdout"]))
    secret -= {f"{EXPECTED_BATCH}", f"{NUM_RECORDS}"}.union(*map(forms_of, planned))
    # Constants are public as well: every DDPMScheduler has 0.995.
    secret -= numbers_in(json.dumps(dict(build_scheduler().config)).encode())
    texts = {
        name: content for name, content in outside.items() if Path(str(name)).suffix in ("", ".md", ".json", ".py")
    }
    assert {"README.md", "privacy.json", "stdout", "stderr"} <= {str(name) for name in texts}
    assert {str(name): found for name, content in texts.items() if (found := numbers_in(content) & secret)} == {}
    printed = outside["stdout"] + outside["stderr"]
    assert b"loss" not in printed
    assert b"batch of" not in printed


def test_a_traceback_stays_at_home(tmp_path):
    """Raises an error within a step, whose message has a batch size, a name and pixels."""
    finished, published, _, _ = observed_run(tmp_path, breaks="yes")
    assert finished.returncode != 0
    assert b"error: Training broke off with a RuntimeError" in finished.stderr
    assert published == {}
    for words in (NAME.encode(), b"a batch of", b"tensor("):
        assert words not in finished.stdout + finished.stderr
    kept = (tmp_path / "model" / "private" / "traceback-0.txt").read_text()
    assert f"with {NAME}" in kept


def test_an_error_kept_at_home_is_not_printed_with_the_one_that_is_raised(tmp_path):
    with (
        pytest.raises(TrainingError, match="it is in .*traceback.txt") as raised,
        confidential_errors(tmp_path / "traceback.txt"),
    ):
        raise ZeroDivisionError(NAME)
    assert NAME not in "".join(traceback.format_exception(raised.value))
    assert NAME in (tmp_path / "traceback.txt").read_text()


def interrupted_while_an_error_is_handled():
    try:
        raise ZeroDivisionError(NAME)
    except ZeroDivisionError:
        raise KeyboardInterrupt  # noqa: B904


def refused_because_of_an_error():
    try:
        raise ZeroDivisionError(NAME)
    except ZeroDivisionError as error:
        raise InputError("give fewer") from error


def broken_off_with_a_name_that_is_no_text():
    raise ZeroDivisionError(f"{NAME} \udcff")


@pytest.mark.parametrize(
    "work",
    [interrupted_while_an_error_is_handled, refused_because_of_an_error, broken_off_with_a_name_that_is_no_text],
)
def test_no_way_out_carries_the_text_of_an_error(tmp_path, work):
    for path in (tmp_path / "traceback.txt", tmp_path / "nowhere" / "traceback.txt"):
        with pytest.raises((KeyboardInterrupt, InputError, TrainingError)) as raised, confidential_errors(path):
            work()
        assert NAME not in "".join(traceback.format_exception(raised.value))


def test_what_the_user_gave_is_said_as_ever(tmp_path):
    with pytest.raises(InputError, match="give fewer"), confidential_errors(tmp_path / "traceback.txt"):
        raise InputError("give fewer")
    assert not (tmp_path / "traceback.txt").exists()


def test_refusals_of_damaged_files_do_not_name_them(tmp_path):
    for directory, name in (("photos", f"cat/{NAME}.png"), ("tables", f"{NAME}.parquet")):
        path = tmp_path / directory / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"not what its name says")
        with pytest.raises(InputError) as refused:
            load_image_dataset(train_data_dir=tmp_path / directory)
        assert NAME not in "".join(traceback.format_exception(refused.value))
