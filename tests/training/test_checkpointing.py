"""Runs that are interrupted: what they are resumed from, what they count, and how they end."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from diffusers_dp_curriculum import (
    CentralImageDataset,
    InputError,
    RunStatus,
    StorageError,
    TrainingError,
    recompute_epsilon,
)
from diffusers_dp_curriculum.mechanisms.central_images import CentralImageQueries
from diffusers_dp_curriculum.mechanisms.dp_sgd import DPSGD
from diffusers_dp_curriculum.training import checkpointing as checkpointing_module
from diffusers_dp_curriculum.training.run_directory import note_errors_for_resume
from helpers import smallest_unet, tiny_records
from helpers.runs import finish, interrupted, make_trainer
from kill_harness import check, kill_until_done, start


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def names(output_dir):
    return sorted(path.name for path in (output_dir / "private" / "checkpoints").iterdir())


@pytest.mark.parametrize("after", [2, 5])  # of 3 steps in the first stage and 4 in the second
def test_a_terminated_run_says_how_to_resume_and_ends_as_if_nothing_had_been(tmp_path, messages, monkeypatch, after):
    interrupted(tmp_path / "model", after)
    assert "resume with the same settings and `resume_from_checkpoint` latest" in messages.text
    assert names(tmp_path / "model") == ["checkpoint-0", f"checkpoint-{after}"]
    monkeypatch.setattr(CentralImageQueries, "release", lambda *_, **__: pytest.fail("queried a second time"))
    trainer = make_trainer(tmp_path / "model", resume_from_checkpoint="latest")
    privacy = finish(trainer)
    assert f" from checkpoint-{after}." in messages.text
    assert [(entry["name"], entry["steps"]) for entry in privacy["mechanisms"]] == [
        ("central_images_mean", 5),
        ("dp_sgd", 4),
    ]
    assert privacy["epsilon"] == pytest.approx(trainer.plan.epsilon_after[4])
    # A finished run takes no further step.
    again = make_trainer(tmp_path / "model", resume_from_checkpoint="latest")
    assert finish(again) == privacy


def test_the_warm_up_ends_with_the_same_weights_whether_interrupted_or_not(tmp_path, monkeypatch):
    given = torch.rand(6, 1, 8, 8)
    original = CentralImageQueries.release

    def fixed(*args):
        central = original(*args)
        return CentralImageDataset(given, torch.arange(6) % 3, central.mechanism, central.class_names)

    monkeypatch.setattr(CentralImageQueries, "release", fixed)
    weights = []
    for name, after in (("one", None), ("two", 2)):
        torch.manual_seed(0)
        unet = smallest_unet()
        if after is not None:
            interrupted(tmp_path / name, after, unet=unet)
            unet = smallest_unet()  # other initial weights, which the checkpoint replaces
        trainer = make_trainer(tmp_path / name, unet=unet, resume_from_checkpoint="latest")
        trainer._train_by_dp_sgd = lambda: True
        trainer.train()
        weights.append(trainer.unet.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_steps_that_were_turned_back_from_stay_counted(tmp_path, messages):
    """Steps after an earlier checkpoint count, so that the run stops before it would pass the target."""
    interrupted(tmp_path / "model", 6, checkpointing_steps=1)
    trainer = make_trainer(tmp_path / "model", resume_from_checkpoint="checkpoint-4")
    privacy = finish(trainer)
    assert privacy["mechanisms"][1]["steps"] == 4
    assert privacy["epsilon"] <= 10
    assert "DP-SGD stops after 2 of 4 steps" in messages.text


STEPS = 14
LONG = {"max_train_steps": STEPS, "target_epsilon": 30.0}


def broken_off(output_dir, after, error, **options):
    """Start a run that ends with `error` in the step of DP-SGD after the first `after` ones; return its trainer."""
    trainer = make_trainer(output_dir, **LONG, **options)
    step, taken = DPSGD.step, []

    def breaks(mechanism):
        if len(taken) == after:
            raise error
        step(mechanism)
        taken.append(1)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DPSGD, "step", breaks)
        with pytest.raises((type(error), TrainingError)):
            trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return trainer


def released_steps(output_dir):
    lines = (output_dir / "private" / "journal.jsonl").read_text().splitlines()
    return sum(json.loads(line).get("release", {}).get("name") == "dp_sgd" for line in lines)


def stated_steps(privacy):
    return sum(entry["steps"] for entry in privacy["mechanisms"] if entry["name"] == "dp_sgd")


def check_that_all_is_stated(output_dir, privacy, released):
    """Check that the statement has every release in the journal, and that its epsilon can be recomputed."""
    assert released_steps(output_dir) == released
    assert stated_steps(privacy) == released
    assert recompute_epsilon(privacy) == pytest.approx(privacy["epsilon"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a batch of 17"), SystemExit(1), InputError("full")])
def test_steps_whose_network_was_left_in_memory_stay_counted(tmp_path, error):
    """A notebook could do this: three times a run ends with an error, its network is seen, and it is resumed."""
    for number in range(3):
        resume = {"resume_from_checkpoint": "latest"} if number else {}
        looked_at = broken_off(tmp_path / "model", 3, error, **resume)
        assert looked_at.unet.conv_in.weight.isfinite().all()
    trainer = make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **LONG)
    privacy = finish(trainer)
    # Lost steps count, so that fewer steps can be taken at the end.
    assert trainer.checkpoint.stage == "central_images"
    assert STEPS <= released_steps(tmp_path / "model") < STEPS + 4
    check_that_all_is_stated(tmp_path / "model", privacy, released_steps(tmp_path / "model"))
    assert privacy["epsilon"] <= 30


def test_ctrl_c_leaves_a_checkpoint_and_a_second_one_does_not_wait(tmp_path, capfd):
    before = signal.getsignal(signal.SIGINT)
    for presses, checkpoint in ((1, "checkpoint-7"), (2, "checkpoint-0")):
        output_dir = tmp_path / str(presses)
        trainer = make_trainer(output_dir, **LONG)
        original = trainer._after_step

        def after_step(state, *others, original=original, trainer=trainer, presses=presses, **flags):
            if trainer._number(state) == 7:
                for _ in range(presses):
                    os.kill(os.getpid(), signal.SIGINT)
            return original(state, *others, **flags)

        trainer._after_step = after_step
        if presses == 1:
            assert trainer.train() is RunStatus.INTERRUPTED
        else:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        assert "Press it again to stop at once" in capfd.readouterr().err
        assert names(output_dir)[-1] == checkpoint
        AcceleratorState._reset_state(reset_partial_state=True)
        privacy = finish(make_trainer(output_dir, resume_from_checkpoint="latest", **LONG))
        check_that_all_is_stated(output_dir, privacy, released_steps(output_dir))
        AcceleratorState._reset_state(reset_partial_state=True)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("deleted", [["checkpoint-8"], ["checkpoint-8", "checkpoint-6"], ["all"]])
def test_steps_of_checkpoints_that_were_deleted_stay_counted(tmp_path, deleted):
    interrupted(tmp_path / "model", 8, checkpointing_steps=2, **LONG)
    checkpoints = tmp_path / "model" / "private" / "checkpoints"
    for name in names(tmp_path / "model") if deleted == ["all"] else deleted:
        shutil.rmtree(checkpoints / name)
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **LONG)
    privacy = finish(trainer)
    check_that_all_is_stated(tmp_path / "model", privacy, released_steps(tmp_path / "model"))
    assert stated_steps(privacy) < STEPS + 4
    queries = [entry["steps"] for entry in privacy["mechanisms"] if entry["name"] == "central_images_mean"]
    assert sum(queries) == 5  # what they released is kept beside the checkpoints


def test_a_checkpoint_written_after_the_trainer_was_made_is_the_one_that_is_resumed(tmp_path):
    """Such a trainer may be of a requeued job that overlaps with the old one, or the second one in a notebook."""
    interrupted(tmp_path / "model", 4, checkpointing_steps=1, **LONG)
    AcceleratorState._reset_state(reset_partial_state=True)
    early = make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **LONG)
    assert early.checkpoint.name == "checkpoint-4"
    interrupted(tmp_path / "model", 9, resume_from_checkpoint="latest", **LONG)
    privacy = finish(early)
    assert early.checkpoint.name == "checkpoint-9"
    check_that_all_is_stated(tmp_path / "model", privacy, STEPS)


def test_two_trainers_made_before_there_was_a_run_share_it(tmp_path):
    first, second = (make_trainer(tmp_path / "model", resume_from_checkpoint="latest") for _ in range(2))
    privacy = finish(first)
    assert finish(second) == privacy


@pytest.mark.parametrize("option", [{"logger": "tensorboard"}, {"log_sensitive_curves": True}])
def test_steps_that_a_curve_shows_count_even_if_the_process_is_killed(tmp_path, option):
    """Each point of a curve is on disk, or with a tracker, at once."""
    killed_after(tmp_path / "model", 9, **option)
    privacy = finish(make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **LONG, **option))
    check_that_all_is_stated(tmp_path / "model", privacy, released_steps(tmp_path / "model"))


def killed_after(output_dir, number, in_thread=False, **options):
    """Start a run in another process, and kill it in step `number`, counted over both stages."""
    child = os.fork()
    if child == 0:
        trainer = make_trainer(output_dir, **LONG | options)
        trainer._after_step = lambda state, *_, **__: trainer._number(state) == number and os.kill(os.getpid(), 9)
        with contextlib.suppress(BaseException):
            if in_thread:
                thread = threading.Thread(target=trainer.train)
                thread.start()
                thread.join()
            else:
                trainer.train()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_steps_in_a_thread_count_at_once(tmp_path):
    """The thread that started the training can look at the network at any time."""
    killed_after(tmp_path / "model", 9, in_thread=True)
    privacy = finish(make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **LONG))
    check_that_all_is_stated(tmp_path / "model", privacy, released_steps(tmp_path / "model"))


def test_steps_whose_error_another_process_has_shown_stay_counted(tmp_path):
    """When another process ends with an error, the main process may be killed before it records that."""
    killed_after(tmp_path / "model", 9)
    with pytest.raises(ZeroDivisionError), note_errors_for_resume(tmp_path / "model", 1):
        raise ZeroDivisionError
    privacy = finish(make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **LONG))
    check_that_all_is_stated(tmp_path / "model", privacy, released_steps(tmp_path / "model"))
    assert not list((tmp_path / "model" / "private").glob("seen*"))


def test_steps_that_were_lost_with_a_killed_process_are_taken_again_at_no_cost(tmp_path):
    killed_after(tmp_path / "model", 9)
    privacy = finish(make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **LONG))
    assert stated_steps(privacy) == STEPS
    assert released_steps(tmp_path / "model") > STEPS


def test_what_an_error_says_is_written_after_its_steps_count(tmp_path, monkeypatch):
    """A process that is killed in between has counted too many steps, and never too few."""
    journal, seen = tmp_path / "model" / "private" / "journal.jsonl", []
    write_text = Path.write_text

    def watch(path, *content, **options):
        if path.name.startswith("traceback"):
            seen.append(json.loads(journal.read_text().splitlines()[-1]))
        return write_text(path, *content, **options)

    monkeypatch.setattr(Path, "write_text", watch)
    broken_off(tmp_path / "model", 6, ValueError("a batch of 17"))
    assert [event.get("visible") for event in seen] == ["the memory of the process"]


def test_a_checkpoint_counts_before_any_of_it_is_on_disk(tmp_path, monkeypatch):
    journal, seen = tmp_path / "model" / "private" / "journal.jsonl", []
    save = torch.save
    monkeypatch.setattr(
        torch, "save", lambda *what: seen.append(json.loads(journal.read_text().splitlines()[-1])) or save(*what)
    )
    make_trainer(tmp_path / "model", checkpointing_steps=2).train()
    assert [event.get("visible") for event in seen] == [f"checkpoint-{number}" for number in (0, 2, 4, 6, 7)]


def test_a_refused_resume_changes_nothing_in_the_journal(tmp_path):
    interrupted(tmp_path / "model", 5)
    AcceleratorState._reset_state(reset_partial_state=True)
    journal = tmp_path / "model" / "private" / "journal.jsonl"
    before = journal.read_bytes()
    trainer = make_trainer(tmp_path / "model", resume_from_checkpoint="latest")
    shutil.rmtree(tmp_path / "model" / "private" / "checkpoints" / "checkpoint-5")
    trainer.args = replace(trainer.args, resume_from_checkpoint="checkpoint-5")
    with pytest.raises(InputError, match="is no checkpoint of the run"):
        trainer.train()
    trainer.args = replace(trainer.args, resume_from_checkpoint="latest", target_epsilon=9.0)
    with pytest.raises(InputError, match=r"has `target_epsilon` 10.0: resume it with that"):
        trainer.train()
    assert journal.read_bytes() == before


def test_the_records_cannot_be_guessed_from_a_checkpoint(tmp_path):
    """With a plain checksum, somebody who has all other records could try guesses of the last one."""
    checksums = []
    for name in ("one", "two"):
        interrupted(tmp_path / name, 2)
        AcceleratorState._reset_state(reset_partial_state=True)
        checkpoint = tmp_path / name / "private" / "checkpoints" / "checkpoint-2"
        checksums.append(json.loads((checkpoint / "checkpoint.json").read_text())["identity"]["records"])
    assert checksums[0] != checksums[1]
    key = tmp_path / "one" / "private" / "records.key"
    assert key.stat().st_mode & 0o077 == 0
    key.unlink()
    with pytest.raises(StorageError, match=r"records.key is missing.*restore the file"):
        make_trainer(tmp_path / "one", resume_from_checkpoint="latest")


def test_git_leaves_the_private_part_where_it_is(tmp_path):
    interrupted(tmp_path / "model", 2)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    staged = subprocess.run(["git", "ls-files"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert staged.split() == ["model/.gitignore"]


def test_no_generator_state_is_kept(tmp_path):
    interrupted(tmp_path / "model", 5)
    path = tmp_path / "model" / "private" / "checkpoints" / "checkpoint-5"
    state = torch.load(path / "state.pt", weights_only=True)
    assert set(state) == {"unet", "optimizer", "ema", "lr_scheduler", "step"}
    assert sorted(file.name for file in path.iterdir()) == ["checkpoint.json", "state.pt"]


def test_a_crash_while_a_checkpoint_is_written_leaves_the_last_one_usable(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing_module, "_sync", lambda path: path.name.startswith("checkpoint-4") and 1 / 0)
    trainer = make_trainer(tmp_path / "model", checkpointing_steps=2)
    with pytest.raises(TrainingError, match="ZeroDivisionError"):
        trainer.train()
    monkeypatch.undo()
    assert "checkpoint-4.partial" in names(tmp_path / "model")
    resumed = make_trainer(tmp_path / "model", resume_from_checkpoint="latest", checkpoints_total_limit=2)
    assert resumed.checkpoint.name == "checkpoint-2"
    # The incomplete checkpoint-4 shows its step, so that this step stays counted.
    assert finish(resumed)["mechanisms"][1]["steps"] == 4
    assert names(tmp_path / "model") == ["checkpoint-2", "checkpoint-6"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_grad_norm": 2.0}, "was made with other max_grad_norm"),
        ({"target_epsilon": 9.0}, "was made with other target_epsilon"),
        ({"records": tiny_records(seed=1)}, "was made with other records"),
        ({"unet": smallest_unet(block_out_channels=(16,))}, "was made with other unet block_out_channels"),
        ({"resume_from_checkpoint": "checkpoint-3"}, "is no checkpoint of the run"),
        ({"resume_from_checkpoint": None}, "already holds another run"),
    ],
)
def test_another_run_is_not_resumed(tmp_path_factory, change, message):
    output_dir = tmp_path_factory.getbasetemp() / "started" / "model"
    if not output_dir.exists():
        interrupted(output_dir, 2)
        AcceleratorState._reset_state(reset_partial_state=True)
    journal = (output_dir / "private" / "journal.jsonl").read_bytes()
    with pytest.raises(InputError, match=message):
        make_trainer(output_dir, **{"resume_from_checkpoint": "latest", **change})
    assert (output_dir / "private" / "journal.jsonl").read_bytes() == journal


def test_a_run_is_resumed_with_other_settings_of_its_samples(tmp_path):
    interrupted(tmp_path / "model", 5)
    samples = {"num_inference_steps": 3, "guidance_scale": 2.0, "s_tmin": 0.1, "s_tmax": 20.0}
    trainer = make_trainer(tmp_path / "model", resume_from_checkpoint=True, **samples)
    assert trainer.checkpoint.name == "checkpoint-5"
    finish(trainer)
    assert "| num_inference_steps | 3 |" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("content", [b"", b"neither JSON nor tensors", b"null"])
@pytest.mark.parametrize("name", ["checkpoint.json", "state.pt", "central_images.json", "central_images.safetensors"])
def test_a_damaged_checkpoint_or_release_is_refused(tmp_path, tmp_path_factory, name, content):
    whole = tmp_path_factory.getbasetemp() / "whole" / "model"
    if not whole.exists():
        interrupted(whole, 2)
        AcceleratorState._reset_state(reset_partial_state=True)
    shutil.copytree(whole, tmp_path / "model")
    directory = "central_images" if name.startswith("central_images") else "checkpoints/checkpoint-2"
    (tmp_path / "model" / "private" / directory / name).write_bytes(content)
    with pytest.raises(StorageError, match=f"{directory}.* cannot be read") as refusal:
        make_trainer(tmp_path / "model", resume_from_checkpoint="latest")
    assert "\n" not in str(refusal.value)


def test_only_a_run_is_resumed(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").touch()
    for path, which in ((tmp_path / "thesis", "latest"), (tmp_path / "nothing", "checkpoint-3")):
        with pytest.raises(InputError, match="holds no run to resume"):
            make_trainer(path, resume_from_checkpoint=which)


def test_a_run_that_was_killed_is_whole_in_the_end(tmp_path):
    killed_after(tmp_path / "model", 9, target_epsilon=10.0)
    finish(make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **LONG | {"target_epsilon": 10.0}))
    check(tmp_path / "model", steps=STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_sigterm_to_all_processes_of_a_launch_leaves_a_checkpoint_to_resume_from(tmp_path, num_processes):
    process = start(tmp_path, num_processes, steps=60)
    journal = tmp_path / "model" / "private" / "journal.jsonl"
    while not journal.exists() or journal.read_text().count('"release"') < 8:  # five queries and some steps
        assert process.poll() is None, (tmp_path / "stderr").read_text()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)
    number = re.search(r"Interrupted after (\d+) steps", (tmp_path / "stderr").read_text())[1]
    options = {"resume_from_checkpoint": "latest", "central_train_steps": 60, "max_train_steps": 60}
    resumed = make_trainer(tmp_path / "model", **options)
    assert (resumed.checkpoint.name, resumed.checkpoint.stage) == (f"checkpoint-{number}", "dp_sgd")
    assert finish(resumed)["mechanisms"][1]["steps"] == 60  # in one process, whatever the number before


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_killed_twenty_times_is_whole_in_the_end(tmp_path, num_processes):
    left = kill_until_done(tmp_path, kills=20, num_processes=num_processes, steps=160)
    assert len(left) == 20
    assert 0 < sum(steps > 0 for steps in left) < 20  # some kills hit each stage
    check(tmp_path / "model", steps=160)
