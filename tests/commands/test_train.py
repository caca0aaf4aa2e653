"""The command `dp-curriculum train`, started by the launcher and called in this process."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
from PIL import Image

from diffusers_dp_curriculum import DPCurriculumConfig, InputError, cli
from diffusers_dp_curriculum.commands import train
from diffusers_dp_curriculum.commands.train import parse_arguments
from diffusers_dp_curriculum.options import declared_options
from helpers import REPOSITORY


SCRIPT = REPOSITORY / "examples" / "train_dp_curriculum.py"
TINY = {
    "accountant": "rdp",
    "block_out_channels": "8",
    "central_train_steps": "2",
    "train_batch_size": "4",
    "max_train_steps": "2",
    "noise_multiplicity": "2",
    "num_inference_steps": "2",
    "central_noise_multiplier": "20",
}


def launch(arguments, tmp_path, script=(str(SCRIPT),)):
    """`accelerate launch` of the script, as a user would."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *script, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HF_HOME": str(tmp_path / "hf")}
    )


def flags_of(options):
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def write_image_folder(path, count=12, size=(9, 11)):
    generator = np.random.default_rng(0)
    for number in range(count):
        directory = path / ["cat", "dog"][number % 2]
        directory.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / f"{number}.png")


def test_image_folder_to_pipeline_and_data_set(tmp_path, monkeypatch, capsys, fresh_accelerator):
    """Train on a folder of colour images through the launcher, and generate a data set."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_image_folder(tmp_path / "photos")
    (tmp_path / "photos" / "cat" / "unread.heic").touch()
    output_dir = tmp_path / "model"
    options = {"train_data_dir": tmp_path / "photos", "resolution": 8, "output_dir": output_dir, **TINY}
    options["accept_left_out_files"] = True
    finished = launch(flags_of(options), tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "Plan for 12 records" in finished.stdout
    assert "Plan for" not in finished.stderr  # nor do loggers of other packages print it again
    of_the_owner = (
        "  files           13 found, 12 used, 1 left out\n",
        "  left out        1 .heic (in no format that Pillow reads)\n",
        "  classes         0 = cat, 1 = dog: taken from the directories found, also empty ones (--class_names fixes ",
    )
    for line in of_the_owner:
        assert line in finished.stdout
    for path in output_dir.rglob("*"):
        if path.is_file() and "private" not in path.parts:
            assert not any(words in path.read_bytes() for words in (b"heic", b"1 left out", b"directories found"))
    assert f"Published files are in {output_dir}" in finished.stdout
    assert "  classes               0 = cat, 1 = dog\n" in finished.stdout
    assert "epsilon=" in finished.stderr  # the progress bars
    assert json.loads((output_dir / "privacy.json").read_text())["epsilon"] <= 10
    assert "0 = cat, 1 = dog." in (output_dir / "README.md").read_text()

    assert cli.main(["train", *flags_of(options)]) == 1
    assert "already holds another run" in capsys.readouterr().err

    generate = {"images_per_class": 3, "num_inference_steps": 2, "output_dir": tmp_path / "synthetic"}
    assert cli.main(["generate", str(output_dir), *flags_of(generate)]) == 0
    dataset = datasets.load_dataset(str(tmp_path / "synthetic"), split="train")
    assert dataset.features["label"].names == ["cat", "dog"]
    assert len(dataset) == 6
    assert (tmp_path / "synthetic" / "privacy.json").read_bytes() == (output_dir / "privacy.json").read_bytes()


def test_refusal_is_one_sentence_without_a_traceback_of_ours(tmp_path):
    arguments = ["--preset", "letters", "--output_dir", str(tmp_path / "model")]
    finished = launch(arguments, tmp_path, script=("-m", "diffusers_dp_curriculum.cli", "train"))
    assert finished.returncode != 0
    assert 'error: There is no preset "letters": choose one of camelyon17, celeba_128, ' in finished.stderr
    assert 'train.py", line' not in finished.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "flags", [["--hub_token", "hf_secret"], ["--hub_token=hf_secret"], ["--hub-token", "hf_secret"]]
)
def test_a_token_on_the_command_line_is_warned_of_and_hidden_from_trackers(
    tmp_path, monkeypatch, capsys, fresh_accelerator, flags
):
    def run_script(**options):
        """Its exit status, what it prints, and the command line that a tracker would record."""
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags, *flags_of({**TINY, "output_dir": "model", **options})])
        with pytest.raises(SystemExit) as exited:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return exited.value.code, capsys.readouterr(), sys.argv

    monkeypatch.chdir(tmp_path)
    code, printed, _ = run_script(learning_rate=-1)
    assert code == 1
    assert "learning_rate is -1.0" in printed.err  # refused before the token is looked for
    write_image_folder(tmp_path / "photos", size=(8, 8))
    code, printed, recorded = run_script(train_data_dir="photos", plan="true")
    assert code == 0, printed.err
    assert printed.err.count("A token on the command line is visible to everybody") == 1
    assert "***" in " ".join(recorded)
    assert "hf_secret" not in " ".join([*recorded, *printed])


def test_ctrl_c_says_how_to_resume_and_shows_no_traceback(tmp_path):
    write_image_folder(tmp_path / "photos", size=(8, 8))
    options = {"train_data_dir": "photos", "output_dir": "model", **TINY, "max_train_steps": 5000}
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *flags_of(options)],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "stderr").open("w"),
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    journal = tmp_path / "model" / "private" / "journal.jsonl"
    while not journal.exists() or "checkpoint-0" not in journal.read_text():
        assert process.poll() is None, (tmp_path / "stderr").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"Interrupted after \d+ steps: resume with the same settings", printed)
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    assert "Press it again to stop at once" in (tmp_path / "stderr").read_text()
    assert len(list((tmp_path / "model" / "private" / "checkpoints").iterdir())) == 2


def test_without_arguments_the_preset_is_digits():
    script, config = parse_arguments([])
    assert script.dataset_name == "digits"
    assert config.output_dir == "dp-curriculum-digits"
    assert config.target_epsilon <= 10


def test_flags_override_the_preset_and_own_images_get_the_recipe():
    recipe = parse_arguments([])[1]
    script, config = parse_arguments(["--preset", "digits", "--train_data_dir", "photos", "--max_train_steps", "7"])
    assert (script.dataset_name, script.train_data_dir, config.max_train_steps) == (None, "photos", 7)
    assert config.output_dir == "dp-curriculum-model"
    assert config.central_sample_rate == recipe.central_sample_rate
    script, config = parse_arguments(["--train_data_dir", "photos"])
    assert config == DPCurriculumConfig()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_ratee", "3"], "There is no flag --learning_ratee"),
        (["--target_eps", "3"], "There is no flag --target_eps"),
        (["--preset", "letters"], 'There is no preset "letters"'),
        (["--target_epsilon", "-1"], "`target_epsilon` is -1.0"),
        (["--output_dir", ""], "`output_dir` is empty"),
        (["--trainable", "("], "which is no regular expression"),
        (
            ["--trainable", "lora"],
            "starts from random weights, on which `trainable` lora has been no better than chance",
        ),
    ],
)
def test_bad_flags_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        parse_arguments(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target_epsilon", "-1"], "error: --target_epsilon is -1.0: give a number above 0.\n"),
        (["--hub-model-id", "a", "--guidance-scale", "-1"], "error: --guidance_scale is -1.0: give at least 0.\n"),
        (["--no-use-ema", "--logger", "paper"], 'error: --logger is "paper": choose tensorboard, wandb or trackio.\n'),
    ],
)
def test_messages_speak_of_flags(arguments, message, capsys):
    assert cli.main(["train", *arguments]) == 1
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], True),
        (["--use_ema"], True),
        (["--use_ema", "false"], False),
        (["--no_use_ema"], False),
        (["--no-use-ema"], False),
    ],
)
def test_what_is_on_by_default_can_be_switched_off(flags, expected):
    assert parse_arguments(flags)[1].use_ema is expected


def test_a_plan_says_what_a_run_costs_and_leaves_nothing_behind(tmp_path, capsys, fresh_accelerator):
    write_image_folder(tmp_path / "photos")
    options = {"train_data_dir": tmp_path / "photos", "resolution": 8, "output_dir": tmp_path / "model", **TINY}
    assert cli.main(["train", *flags_of(options), "--plan"]) == 0
    printed = capsys.readouterr().out
    for words in ("noise multiplier", "whole run       epsilon 9.", "expected time   about", "a process beside Python"):
        assert words in printed
    assert not (tmp_path / "model").exists()


def test_a_plan_needs_an_inventory_and_one_image(tmp_path, capsys, fresh_accelerator):
    write_image_folder(tmp_path / "photos", size=(8, 8))
    for path in sorted((tmp_path / "photos").rglob("*.png"))[1:]:
        path.write_bytes(b"never decoded")
    options = {"train_data_dir": tmp_path / "photos", "output_dir": tmp_path / "model", **TINY}
    assert cli.main(["train", *flags_of(options), "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "Plan for 12 records of 8x8x3 in 2 classes\n  files           12 found, 12 used, 0 left out" in printed
    assert cli.main(["train", *flags_of(options | {"train_batch_size": 99}), "--plan"]) == 1
    printed = capsys.readouterr()
    assert "Plan for 12 records of 8x8x3 in 2 classes\n  files           12 found" in printed.out
    assert "--train_batch_size 99 is larger than the data set (12 records)" in printed.err
    assert cli.main(["train", *flags_of(options)]) == 1
    assert "11 in no format that Pillow reads), the first of which is record 1" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["model", "cat/model", "../link/model", "."])
def test_output_in_the_directory_of_the_records_is_refused(tmp_path, capsys, place):
    write_image_folder(tmp_path / "photos")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    options = {"train_data_dir": tmp_path / "photos", "output_dir": tmp_path / "photos" / place, **TINY}
    for flags in ([], ["--plan"], ["--resume_from_checkpoint", "latest"]):
        assert cli.main(["train", *flags_of(options), *flags]) == 1
        printed = capsys.readouterr().err
        assert "is in the directory of the data set" in printed
        assert "choose another --output_dir" in printed


def test_a_found_list_of_classes_is_refused_unless_it_is_named_or_accepted(tmp_path, capsys, fresh_accelerator):
    write_image_folder(tmp_path / "photos", size=(8, 8))
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "photos"), cache_dir=str(tmp_path / "cache"))
    found.save_to_disk(tmp_path / "saved")
    options = {"train_data_dir": tmp_path / "saved", "output_dir": tmp_path / "model", **TINY}
    arguments = flags_of(options)
    with pytest.raises(InputError, match="`class_names` cat dog .* `accept_found_classes`"):
        train.main([*arguments, "--plan"])
    for flags, words in (
        (["--accept_found_classes"], "0 = cat, 1 = dog: accepted although they may be those directories alone"),
        (["--class_names", "bird", "cat", "dog"], "0 = bird, 1 = cat, 2 = dog: as given; published with the model"),
    ):
        assert train.main([*arguments, "--plan", *flags]) == 0
        assert words in capsys.readouterr().out
    assert not (tmp_path / "model").exists()


def test_flags_say_how_images_become_pixels(tmp_path, monkeypatch):
    loaded = {}

    def load(**options):
        loaded.update(options)
        raise InputError("enough: stop here.")

    monkeypatch.setattr("diffusers_dp_curriculum.data.image_dataset.load_image_dataset", load)
    flags = ["--channels", "1", "--pixel_range", "-1000", "1000", "--background", "white"]
    flags += ["--train_data_dir", str(tmp_path / "photos")]
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="enough"):
        train.main([*flags, "--output_dir", str(tmp_path / "model")])
    assert (loaded["channels"], loaded["pixel_range"], loaded["background"]) == (1, [-1000, 1000], "white")


@pytest.mark.parametrize("flag", ["edm_sigma_data", "class_names", "accept_found_classes"])
def test_flags_that_are_published_say_so(flag):
    """The help must not lead a user to measure the records."""
    options = {option.name: option.help for option in declared_options(train.ScriptArguments)}
    assert "publish" in options[flag].lower()
    assert "must not be measured on the records" in options["edm_sigma_data"]
