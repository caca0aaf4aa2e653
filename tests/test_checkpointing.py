"""Runs that are interrupted: what they go on from, what they count, and how they end."""

import json
import os
import re
import shutil
import signal
import time

import pytest
import torch
from accelerate.state import AcceleratorState

from diffusers_dp_curriculum import CentralImageDataset, InputError, TrainingError
from diffusers_dp_curriculum import checkpointing as checkpointing_module
from helpers import tiny_records, tiny_unet
from kill_harness import check, kill_until_done, start
from test_trainer import make_trainer


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def interrupted(output_dir, after, **options):
    """A run that SIGTERM reaches during the step after which it has taken `after` in both stages."""
    trainer = make_trainer(output_dir, **options)
    original = trainer._after_step

    def after_step(state, *others, **flags):
        if trainer._number(state) == after:
            os.kill(os.getpid(), signal.SIGTERM)
        original(state, *others, **flags)

    trainer._after_step = after_step
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert end.value.code == 0


def finish(trainer):
    trainer.train()
    trainer.save_pipeline()
    trainer.ledger.close()
    return json.loads((trainer.output_dir / "privacy.json").read_text())


def names(output_dir):
    return sorted(path.name for path in (output_dir / "private" / "checkpoints").iterdir())


@pytest.mark.parametrize("after", [2, 5])  # of 3 steps in the first stage and 4 in the second
def test_a_terminated_run_says_how_to_go_on_and_ends_as_if_nothing_had_been(tmp_path, capsys, monkeypatch, after):
    interrupted(tmp_path / "model", after)
    assert "go on with the same command and --resume_from_checkpoint latest" in capsys.readouterr().out
    assert names(tmp_path / "model") == ["checkpoint-0", f"checkpoint-{after}"]
    monkeypatch.setattr(CentralImageDataset, "from_dataset", lambda *_, **__: pytest.fail("queried a second time"))
    trainer = make_trainer(tmp_path / "model", resume_from_checkpoint="latest")
    privacy = finish(trainer)
    assert f"Going on from checkpoint-{after}." in capsys.readouterr().out
    assert [(entry["name"], entry["steps"]) for entry in privacy["mechanisms"]] == [
        ("central_images_mean", 5),
        ("dp_sgd", 4),
    ]
    assert privacy["epsilon"] == pytest.approx(trainer.plan.epsilon_after[4])
    again = make_trainer(tmp_path / "model", resume_from_checkpoint="latest")  # of a finished run: nothing is left
    assert finish(again) == privacy


def test_the_warm_up_ends_with_the_same_weights_whether_interrupted_or_not(tmp_path, monkeypatch):
    given = torch.rand(6, 1, 8, 8)
    original = CentralImageDataset.from_dataset

    def fixed(*args, **options):
        central = original(*args, **options)
        return CentralImageDataset(given, torch.arange(6) % 3, central.mechanism, central.class_names)

    monkeypatch.setattr(CentralImageDataset, "from_dataset", fixed)
    weights = []
    for name, after in (("one", None), ("two", 2)):
        torch.manual_seed(0)
        unet = tiny_unet()
        if after is not None:
            interrupted(tmp_path / name, after, unet=unet)
            unet = tiny_unet()  # other initial weights, which the checkpoint replaces
        trainer = make_trainer(tmp_path / name, unet=unet, resume_from_checkpoint="latest")
        trainer._train_by_dp_sgd = lambda: None
        trainer.train()
        weights.append(trainer.unet.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("seen", ["a picture", "a checkpoint"])
def test_steps_that_were_seen_and_given_up_stay_counted(tmp_path, capsys, seen):
    """Whoever turns back from a checkpoint may have looked at it. The run stops before it would pass the target."""
    interrupted(tmp_path / "model", 6, checkpointing_steps=1)
    if seen == "a picture":
        journal_user = make_trainer(tmp_path / "model", resume_from_checkpoint="latest", checkpointing_steps=1)
        journal_user._open_ledger()
        journal_user.ledger.mark_visible("a picture of step 3")
        journal_user.ledger.close()
        AcceleratorState._reset_state(reset_partial_state=True)
        for later in ("checkpoint-5", "checkpoint-6"):
            shutil.rmtree(tmp_path / "model" / "private" / "checkpoints" / later)
    trainer = make_trainer(tmp_path / "model", resume_from_checkpoint="checkpoint-4")
    privacy = finish(trainer)
    assert privacy["mechanisms"][1]["steps"] == 4
    assert privacy["epsilon"] <= 10
    assert "DP-SGD stops after 2 of 4 steps" in capsys.readouterr().out


def test_no_generator_state_is_kept(tmp_path):
    interrupted(tmp_path / "model", 5)
    path = tmp_path / "model" / "private" / "checkpoints" / "checkpoint-5"
    state = torch.load(path / "state.pt", weights_only=True)
    assert set(state) == {"unet", "optimizer", "ema", "lr_scheduler", "step"}
    assert sorted(file.name for file in path.iterdir()) == ["central_images", "checkpoint.json", "state.pt"]


def test_a_crash_while_a_checkpoint_is_written_leaves_the_last_one_usable(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing_module, "_sync", lambda path: path.name.startswith("checkpoint-4") and 1 / 0)
    trainer = make_trainer(tmp_path / "model", checkpointing_steps=2)
    with pytest.raises(TrainingError, match="ZeroDivisionError"):
        trainer.train()
    monkeypatch.undo()
    assert "checkpoint-4.partial" in names(tmp_path / "model")
    resumed = make_trainer(tmp_path / "model", resume_from_checkpoint="latest", checkpoints_total_limit=2)
    assert resumed.checkpoint.name == "checkpoint-2"
    assert finish(resumed)["mechanisms"][1]["steps"] == 4
    assert names(tmp_path / "model") == ["checkpoint-2", "checkpoint-7"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_grad_norm": 2.0}, "was made with other max_grad_norm"),
        ({"target_epsilon": 9.0}, "was made with other target_epsilon"),
        ({"records": tiny_records(seed=1)}, "was made with other records"),
        ({"unet": tiny_unet(block_out_channels=(8, 8))}, "was made with other unet block_out_channels"),
        ({"resume_from_checkpoint": "checkpoint-3"}, "is no checkpoint of the run"),
        ({"resume_from_checkpoint": None}, "already holds another run"),
    ],
)
def test_another_run_is_not_gone_on_with(tmp_path_factory, change, message):
    output_dir = tmp_path_factory.getbasetemp() / "started" / "model"
    if not output_dir.exists():
        interrupted(output_dir, 2)
        AcceleratorState._reset_state(reset_partial_state=True)
    journal = (output_dir / "private" / "journal.jsonl").read_bytes()
    with pytest.raises(InputError, match=message):
        make_trainer(output_dir, **{"resume_from_checkpoint": "latest", **change})
    assert (output_dir / "private" / "journal.jsonl").read_bytes() == journal


@pytest.mark.parametrize("content", [b"", b"neither JSON nor tensors", b"null"])
@pytest.mark.parametrize("name", ["checkpoint.json", "state.pt", "central_images/central_images.safetensors"])
def test_a_damaged_checkpoint_is_refused(tmp_path, tmp_path_factory, name, content):
    whole = tmp_path_factory.getbasetemp() / "whole" / "model"
    if not whole.exists():
        interrupted(whole, 2)
        AcceleratorState._reset_state(reset_partial_state=True)
    shutil.copytree(whole, tmp_path / "model")
    (tmp_path / "model" / "private" / "checkpoints" / "checkpoint-2" / name).write_bytes(content)
    with pytest.raises(InputError, match="checkpoint-2.* cannot be read") as refusal:
        make_trainer(tmp_path / "model", resume_from_checkpoint="latest")
    assert "\n" not in str(refusal.value)


def test_only_a_run_is_gone_on_with(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").touch()
    for path, which in ((tmp_path / "thesis", "latest"), (tmp_path / "nothing", "checkpoint-3")):
        with pytest.raises(InputError, match="holds no run to resume"):
            make_trainer(path, resume_from_checkpoint=which)


def test_a_run_that_was_killed_is_whole_in_the_end(tmp_path):
    kill_until_done(tmp_path, kills=1, steps=6)
    check(tmp_path / "model", steps=6)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_sigterm_to_all_processes_of_a_launch_leaves_a_checkpoint_to_go_on_from(tmp_path, num_processes):
    process = start(tmp_path, num_processes, steps=60)
    journal = tmp_path / "model" / "private" / "journal.jsonl"
    while not journal.exists() or journal.read_text().count('"release"') < 8:  # five queries and some steps
        assert process.poll() is None, (tmp_path / "stderr").read_text()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    printed = process.stdout.read()
    process.wait(timeout=30)
    number = re.search(r"Interrupted by SIGTERM after (\d+) steps", printed)[1]
    options = {"resume_from_checkpoint": "latest", "central_train_steps": 60, "max_train_steps": 60}
    resumed = make_trainer(tmp_path / "model", **options)
    assert (resumed.checkpoint.name, resumed.checkpoint.stage) == (f"checkpoint-{number}", "dp_sgd")
    assert finish(resumed)["mechanisms"][1]["steps"] == 60  # in a single process, however many there were before


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_killed_twenty_times_is_whole_in_the_end(tmp_path, num_processes):
    left = kill_until_done(tmp_path, kills=20, num_processes=num_processes, steps=160)
    assert len(left) == 20
    assert 0 < sum(steps > 0 for steps in left) < 20  # in either stage
    check(tmp_path / "model", steps=160)
