"""Every code block of the documentation is executed, scaled down where it would take long.

The Python blocks of a page share their variables, and a block of text right below one is what it prints. Commands of
`dp-curriculum` and scripts are executed in this process, with the flags of SCALED_DOWN added after their own. The
arguments of `pip` and `pytest` are only checked, since `.ci/run` executes those commands. A block that cannot be
executed says why in a comment above it, such as `<!-- not run: needs a cluster -->`; its flags must exist all the same.
"""

import argparse
import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
from accelerate.commands.launch import launch_command_parser
from PIL import Image

from diffusers_dp_curriculum import DPCurriculumConfig, DPCurriculumTrainer, cli
from helpers import REPOSITORY, smallest_unet, tiny_records, tiny_scheduler
from helpers.autoencoders import tiny_taesd


PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n\n?)?^```(?P<language>\w*)\n(?P<code>.*?)^```$"
    r"(?:\n\n^```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(r"`((?:python|accelerate launch|dp-curriculum|pytest|mkdocs)\s[^`]+)`")

# Flags that shorten minutes or hours to a second; of a flag given twice the last one counts.
SCALED_DOWN = {
    "train": "--accountant rdp --central_train_steps 2 --central_batch_size 4 --train_batch_size 4 --max_train_steps 2 "
    "--noise_multiplicity 1 --num_inference_steps 2 --block_out_channels 8 --central_noise_multiplier 20 "
    "--resolution 8",
    "pretrain": "--max_train_steps 2 --train_batch_size 4 --num_inference_steps 2 --block_out_channels 8 "
    "--resolution 8",
    "generate": "--images_per_class 2 --num_inference_steps 2",
    "evaluate": "--images_per_class 10 --num_inference_steps 2 --classifiers cnn --epochs 1",
    "audit": "--train_data_dir path/to/images --resolution 8 --sample_rate 1 --max_train_steps 2 "
    "--gradient_canaries 100 --image_canaries 100",
}

# Replacements for what is not available here or would take minutes. (test_hub.py loads from the Hub.)
INSTEAD = {
    "bash": {
        "USER/NAME": "alice/name",
        "stabilityai/sd-vae-ft-mse": "public-autoencoder",
        "EDMDPMSolverMultistepScheduler": "DPMSolverMultistepScheduler",  # the model here is no EDM
    },
    "python": {
        "USER/NAME": "OUTPUT_DIR",
        "stabilityai/sd-vae-ft-mse": "public-autoencoder",
        "facebook/dinov2-base": "pixels",
        '["healthy", "ill"]': '["T-shirt", "bag", "boot", "coat", "dress", "pullover", "sandal", "shirt", "sneaker", '
        '"trouser"]',
        "resolution=28)\ntrainer": "resolution=8)\ntrainer",
        "dataset.num_classes)": "dataset.num_classes, block_out_channels=(8,))",
        "num_inference_steps=50": "num_inference_steps=5",
        "images_per_class=100": "images_per_class=100, num_inference_steps=2",
        "target_epsilon=10.0)": "target_epsilon=10.0, accountant='rdp', central_noise_multiplier=20.0, "
        "central_train_steps=2, central_batch_size=4, train_batch_size=4, max_train_steps=2, noise_multiplicity=1, "
        "num_inference_steps=2)",
    },
}

CLASSES = ["T-shirt", "bag", "boot", "coat", "dress", "pullover", "sandal", "shirt", "sneaker", "trouser"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a small finished run."""
    path = tmp_path_factory.mktemp("trained") / "model"
    records = tiny_records(count=60, num_classes=10)
    records.class_names = CLASSES
    args = DPCurriculumConfig(
        output_dir=str(path),
        accountant="rdp",
        central_noise_multiplier=20.0,
        central_train_steps=2,
        central_batch_size=4,
        train_batch_size=4,
        max_train_steps=2,
        noise_multiplicity=1,
        num_inference_steps=2,
    )
    trainer = DPCurriculumTrainer(smallest_unet(num_classes=10), tiny_scheduler(), args, records)
    trainer.train()
    trainer.save_pipeline()
    return path


@pytest.fixture
def reader(trained, hub, tmp_path, monkeypatch):
    """The directory of a reader of the pages: models under the names that the pages use, and images."""
    for name in ("my-model", "OUTPUT_DIR"):
        shutil.copytree(trained, tmp_path / name)
    for index, record in enumerate(tiny_records(count=80, size=30).images):
        split = ("train", "test")[index // 40]
        path = tmp_path / "path/to/images" / split / CLASSES[index % 10] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(record[0].numpy()).save(path)
    tiny_taesd(levels=2).save_pretrained(tmp_path / "public-autoencoder")
    (tmp_path / "DIR").symlink_to("path/to/images")
    (tmp_path / "path/to/public-images").symlink_to("images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def blocks(page: Path) -> list[re.Match]:
    text = page.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    fences = sum(2 + 2 * (block["printed"] is not None) for block in found)
    assert text.count("```") == fences, f"{page.name} has a code block that is not at the start of a line"
    return found


def replaced(code: str, language: str) -> str:
    for said, done in INSTEAD.get(language, {}).items():
        code = code.replace(said, done)
    return code


def commands(code: str) -> list[list[str]]:
    """The words of each command, without comments and without the dots that stand for more flags."""
    lines = code.replace("\\\n", " ").replace("&&", "\n").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [[word for word in words if word != "..."] for words in split if words]


class Parsed(Exception):  # noqa: N818
    """Raised in place of what a script does after it has parsed its flags."""


@contextlib.contextmanager
def parsing_only(what: str, monkeypatch):
    """A context in which a program ends after it has parsed its flags; unknown flags fail the test."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_leave(parser, args=None, namespace=None):
        _, unknown = parse(parser, args, namespace)
        assert not unknown, f"{what} has no flag {unknown}"
        raise Parsed

    with monkeypatch.context() as patch, contextlib.suppress(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_leave)
        yield


def run_sub_command(command: str, arguments: list[str], monkeypatch, parse_only: bool) -> None:
    """Run a sub-command of `dp-curriculum`, or only parse its flags."""
    if command == "--help":
        return
    assert command in cli.COMMANDS, f"There is no command {command}"
    if parse_only:
        with parsing_only(command, monkeypatch):
            cli.run(command, arguments)
        return
    arguments = [*arguments, *SCALED_DOWN.get(command, "").split()]
    if "--plan" in arguments:
        arguments += ["--output_dir", "not-there-yet"]  # a plan is for a new directory, and my-model exists already
    elif command in ("train", "pretrain") and "--output_dir" in arguments:
        # On the page, this command makes the directory, which the fixture has made already.
        shutil.rmtree(arguments[arguments.index("--output_dir") + 1], ignore_errors=True)
    # An audit of what was broken on purpose says so by its status, if its few canaries can show it.
    accepted = (0, 1) if command == "audit" and "--actual_noise" in arguments else (0,)
    assert cli.run(command, arguments) in accepted, f"{command} {' '.join(arguments)}"


def run_script(script: str, arguments: list[str], monkeypatch, parse_only: bool) -> None:
    """Run a script as `python` does, or only parse its flags."""
    if script == "examples/train_dp_curriculum.py":  # a short name for the sub-command
        run_sub_command("train", arguments, monkeypatch, parse_only)
        return
    if parse_only and "Parser(" not in (REPOSITORY / script).read_text(encoding="utf-8"):
        assert not arguments, f"{script} reads no flags"
        return
    with monkeypatch.context() as patch, parsing_only(script, monkeypatch) if parse_only else contextlib.nullcontext():
        patch.setattr(sys, "argv", [script, *arguments])
        patch.syspath_prepend(str((REPOSITORY / script).parent))
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        except SystemExit as end:
            if end.code not in (0, None):
                pytest.fail(f"{script} {' '.join(arguments)}: {end.code}")


def run_command(words: list[str], monkeypatch, parse_only: bool = False) -> None:
    match words:
        case ["accelerate", "launch", *arguments]:
            launched = launch_command_parser().parse_args(arguments)
            program = "dp-curriculum" if launched.training_script == cli.__name__ else launched.training_script
            words = [] if launched.module else ["python"]
            run_command([*words, program, *launched.training_script_args], monkeypatch, parse_only)
        case ["dp-curriculum", command, *arguments]:
            run_sub_command(command, arguments, monkeypatch, parse_only)
        case ["python", script, *arguments]:
            run_script(script, arguments, monkeypatch, parse_only)
        case ["pip", "install", *arguments]:
            pyproject = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
            for extra in re.findall(r"\w+", "".join(re.findall(r"\[.*\]", " ".join(arguments)))):
                assert f"\n{extra} = [" in pyproject, f"There is no extra {extra}"
            assert (REPOSITORY / "constraints.txt").is_file()
        case ["pytest", *arguments]:
            for file in arguments:
                assert not file.endswith(".py") or (REPOSITORY / file).is_file(), f"{file} is no file"
        case ["ruff" | "mypy" | "mkdocs", *_]:
            pass
        case ["srun", "bash", "-c", line]:
            run_command(*commands(re.sub(r"\$(\w+|\(\(.*?\)\))", "1", line)), monkeypatch, parse_only)
        case _:
            pytest.fail(f"The documentation has a command that this test does not know: {words}")


def run_python(code: str, names: dict, page: str) -> str:
    """Execute a block, and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, page, "exec"), names)
    return printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_do_what_the_page_says(page, reader, monkeypatch, fresh_accelerator):
    names = {"__name__": page.stem}
    for block in blocks(page):
        code = replaced(block["code"], block["language"])
        if block["reason"]:
            assert block["language"] == "bash", f"{page.name} has a block that could be executed"
            for words in commands(code):
                if words[0] in ("accelerate", "dp-curriculum", "python", "srun"):
                    run_command(words, monkeypatch, parse_only=True)
            continue
        match block["language"]:
            case "python":
                printed = run_python(code, names, page.name)
                if block["printed"] is not None:
                    assert printed == block["printed"]
            case "bash":
                for words in commands(code):
                    run_command(words, monkeypatch)
            case "json":
                json.loads(code)
            case "bibtex" | "text":
                pass
            case language:
                pytest.fail(f"{page.name} has a block in {language or 'no language'}: execute it, or say why not.")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_sentences_have_flags_that_exist(page, monkeypatch):
    for command in INLINE.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if command.startswith("accelerate") and ".py" not in command:
            command += " examples/train_dp_curriculum.py"  # the sentence is about the launcher's flags
        for words in commands(command.replace("\n", " ")):
            if words[0] == "dp-curriculum" and len(words) == 2:  # the sentence is about the sub-command
                assert words[1] in cli.COMMANDS
            else:
                run_command(words, monkeypatch, parse_only=True)


@pytest.mark.parametrize(
    "command",
    [
        "accelerate launch examples/train_dp_curriculum.py --target_epsilom 1",
        "accelerate launch --num_gpus 2 examples/train_dp_curriculum.py",
        "accelerate launch -m diffusers_dp_curriculum.cly train",
        "dp-curriculum epsilon",
        "dp-curriculum epsilom my-model/privacy.json",
        "dp-curriculum generate my-model --images_per_klass 1",
        "python examples/custom_unett.py",
        'pip install ".[doc]"',
        "pytest tests/test_everything.py",
        "wget model",
    ],
)
def test_wrong_commands_are_noticed(command, monkeypatch):
    with pytest.raises((AssertionError, SystemExit, FileNotFoundError, pytest.fail.Exception)):
        run_command(*commands(command), monkeypatch, parse_only=True)
