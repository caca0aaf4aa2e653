"""A disk that is full, or too small, is one sentence; what was written before it was full is continued."""

import errno
import os
import shutil
import tempfile
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from diffusers_dp_curriculum import ClassConditionalPipeline, StorageError, cli, files, generate_dataset
from diffusers_dp_curriculum.commands import env
from diffusers_dp_curriculum.data import image_decoding, storage
from diffusers_dp_curriculum.data.pixel_format import PixelFormat
from diffusers_dp_curriculum.files import is_full_disk
from helpers import smallest_unet, tiny_scheduler
from helpers.runs import finish, make_trainer


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def fill(disk):
    """Fill a disk except for a page, and return the file to delete."""
    path = disk / "filling"
    free = os.statvfs(disk)
    path.write_bytes(bytes((free.f_bavail - 1) * free.f_bsize))
    return path


def test_a_run_whose_checkpoints_have_no_room_is_refused_before_anything_is_written(small_disk):
    trainer = make_trainer(small_disk / "model", checkpointing_steps=1)
    with pytest.raises(StorageError, match=r"checkpoints take up to .* MB .* free: make room, or set `checkpoints_tot"):
        trainer.train()
    assert not (small_disk / "model").exists()


def test_a_disk_that_is_full_during_training_is_named_and_the_run_resumed(small_disk):
    trainer = make_trainer(small_disk / "model")
    after_step = trainer._after_step

    def fill_before_the_last(state, *others, is_last=False):
        if is_last and state.stage == "dp_sgd":
            fill(small_disk)
        return after_step(state, *others, is_last=is_last)

    trainer._after_step = fill_before_the_last
    with pytest.raises(StorageError, match=r"The disk of .*model is full: make room, and resume with"):
        trainer.train()
    assert [path.name for path in trainer.checkpoints.all()] == ["checkpoint-0"]
    (partial_checkpoint,) = trainer.paths.checkpoints.glob("*.partial")  # its name shows which steps were taken
    assert not list(partial_checkpoint.iterdir())
    (small_disk / "filling").unlink()
    again = make_trainer(small_disk / "model", resume_from_checkpoint="latest")
    assert sum(entry["steps"] for entry in finish(again)["mechanisms"] if entry["name"] == "dp_sgd") == 4


def test_a_disk_that_is_full_when_the_model_is_saved_is_named_and_it_is_saved_again(small_disk):
    trainer = make_trainer(small_disk / "model", checkpoints_total_limit=1)
    trainer.train()
    filling = fill(small_disk)
    with pytest.raises(StorageError, match=r"is full: make room, and save again, or resume with"):
        trainer.save_pipeline()
    assert not (small_disk / "model" / "privacy.json").exists()
    filling.unlink()
    assert (trainer.save_pipeline() / "privacy.json").exists()


def test_a_directory_that_is_gone_when_the_model_is_saved_is_named(tmp_path):
    trainer = make_trainer(tmp_path / "model")
    trainer.train()
    (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(StorageError, match=r"privacy.json cannot be written or read .*, and save again, or resume"):
        trainer.save_pipeline()
    shutil.rmtree(tmp_path / "model")  # what could be written
    (tmp_path / "moved").rename(tmp_path / "model")
    assert (trainer.save_pipeline() / "privacy.json").exists()


def test_a_disk_that_is_full_while_images_are_generated_is_named_and_the_call_repeated(small_disk):
    pipeline = ClassConditionalPipeline(smallest_unet().eval(), tiny_scheduler())
    settings = {"num_inference_steps": 1, "batch_size": 3, "output_dir": small_disk / "images"}
    filling = fill(small_disk)
    with pytest.raises(StorageError, match=r"images is full: make room, and repeat the call"):
        generate_dataset(pipeline, 2, **settings)
    filling.unlink()
    assert len(generate_dataset(pipeline, 2, **settings)) == 6


@pytest.mark.parametrize("reported", [True, False], ids=["before", "when it is reserved"])
def test_decoded_images_that_have_no_room_are_refused(small_disk, monkeypatch, reported):
    """Without the second check, the process would be killed by SIGBUS when it writes to the memory map."""
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    monkeypatch.setattr(storage, "MAX_BYTES_IN_MEMORY", 1000)
    if not reported:
        monkeypatch.setattr(storage, "check_room", lambda *_: None)
    image = PIL.Image.fromarray(np.zeros((64, 64), dtype=np.uint8))
    to_tensor = partial(image_decoding.to_tensor, open_image=lambda image: image, pixel_format=PixelFormat())
    assert to_tensor([image] * 10).shape == (10, 1, 64, 64)
    with pytest.raises(StorageError, match=r"set TMPDIR to a directory on a larger disk" if reported else "is full"):
        to_tensor([image] * 200)


def test_errors_of_all_libraries_that_write_are_recognised(small_disk):
    fill(small_disk)
    tensor = {"a": torch.zeros(100_000)}
    for write in (
        lambda: save_file(tensor, small_disk / "a.safetensors"),
        lambda: PIL.Image.fromarray(np.random.randint(0, 256, (400, 400), np.uint8)).save(small_disk / "a.png"),
    ):
        with pytest.raises(Exception) as error:  # noqa: PT011 - its type is the library's
            write()
        assert is_full_disk(error.value)
    assert not is_full_disk(OSError(errno.EACCES, "Permission denied"))
    assert not is_full_disk(ValueError("no space"))


def test_any_command_names_a_full_disk(monkeypatch, capsys):
    monkeypatch.setattr(env, "main", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space", "/a/file")))
    assert cli.main(["env"]) == 1
    assert "error: A disk is full ([Errno 28] No space: '/a/file'): make room" in capsys.readouterr().err


def test_room_is_looked_for_where_a_new_directory_will_be(tmp_path):
    with pytest.raises(StorageError, match="The files take up to .* MB on the disk of .*new"):
        files.check_room(tmp_path / "new" / "run", 2**80, "The files", "write less")
    files.check_room(tmp_path / "new" / "run", 1, "The files", "write less")
    assert not (tmp_path / "new").exists()
