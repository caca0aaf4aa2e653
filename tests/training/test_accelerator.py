"""Mixed precision, gradient checkpointing, and what a run shows and writes during training."""

import json
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusers_dp_curriculum import InputError
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.gradients.per_record_gradients import choose_mode, per_record_gradients
from diffusers_dp_curriculum.gradients.precision import LOSS_SCALES, Precision
from helpers import tiny_records, tiny_scheduler, tiny_unet
from helpers.reference_gradients import clipped_sum
from helpers.runs import make_trainer


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def some_draws():
    torch.manual_seed(0)
    records = tiny_records(5)
    return DenoisingLoss(tiny_scheduler(), null_label=3).draw(records.images / 127.5 - 1, records.labels, 2)


@pytest.mark.parametrize("mode", ["folded", "loop"])
def test_a_fixed_loss_scale_changes_nothing_that_is_clipped(mode):
    unet, draws = tiny_unet(), some_draws()
    plain, scaled = (
        per_record_gradients(unet, draws, mode, Precision(loss_scale=scale)) for scale in (1.0, LOSS_SCALES["fp16"])
    )
    assert all(gradient.dtype == torch.float32 for gradient in scaled.values())
    expected = clipped_sum(plain, 0.05)
    assert (clipped_sum(scaled, 0.05) - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("mode", ["folded", "loop"])
def test_passes_in_fp16_give_float32_gradients_near_those_of_float32(mode):
    unet, draws = tiny_unet(), some_draws()
    autocast = partial(torch.autocast, "cpu", torch.float16)
    exact = per_record_gradients(unet, draws, mode)
    half = per_record_gradients(unet, draws, mode, Precision(autocast, LOSS_SCALES["fp16"]))
    assert all(gradient.dtype == torch.float32 for gradient in half.values())
    expected = clipped_sum(exact, 0.05)
    assert (clipped_sum(half, 0.05) - expected).norm() < 0.02 * expected.norm()


def test_fp16_without_an_accelerator_is_refused(tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    with pytest.raises(InputError, match="is fp16, which a CPU does not support"):
        make_trainer(tmp_path / "model", mixed_precision="fp16")
    Accelerator(mixed_precision="fp16")  # sets the precision of the whole process
    with pytest.raises(InputError, match="is fp16, which a CPU does not support"):
        make_trainer(tmp_path / "model")


@pytest.mark.parametrize(
    ("mixed_precision", "message"),
    [("fp16", "is fp16, which a CPU does not support"), ("fp8", "is fp8, which is not supported: use")],
)
def test_what_the_launcher_asks_for_is_checked(tmp_path, monkeypatch, mixed_precision, message):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", mixed_precision)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path / "model")
    monkeypatch.undo()
    make_trainer(tmp_path / "model", mixed_precision="bf16")  # a refusal does not fix the precision of the process


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_launcher_that_splits_the_network_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(InputError, match=rf"splits the network over devices \({kind}\)"):
        make_trainer(tmp_path / "model")


def test_what_accelerate_refuses_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "fastest")
    with pytest.raises(InputError, match=r"Accelerate cannot start \(ValueError: .*\): correct"):
        make_trainer(tmp_path / "model")


def test_a_second_trainer_with_another_precision_is_refused(tmp_path):
    make_trainer(tmp_path / "one", mixed_precision="bf16")
    make_trainer(tmp_path / "two", mixed_precision="bf16")
    with pytest.raises(InputError, match="already trains with `mixed_precision` bf16, which Accelerate cannot change"):
        make_trainer(tmp_path / "three", mixed_precision="no")


@pytest.mark.parametrize("mode", ["folded", "loop"])
def test_gradient_checkpointing_changes_no_gradient(mode):
    unet, draws = tiny_unet().train(), some_draws()
    expected = per_record_gradients(unet, draws, mode)
    unet.enable_gradient_checkpointing()
    passes = []
    unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: passes.append(1))
    gradients = per_record_gradients(unet, draws, mode)
    assert len(passes) == 2 * (1 if mode == "folded" else 5)  # each layer was computed twice
    for name, gradient in expected.items():
        assert torch.allclose(gradients[name], gradient, rtol=1e-4, atol=1e-6)
    assert choose_mode(unet, draws, 2, "folded") == "folded"


def test_pictures_curves_and_trackers_during_a_run(tmp_path):
    trainer = make_trainer(
        tmp_path / "model",
        save_images_steps=3,
        checkpointing_steps=100,
        logger="tensorboard",
        log_sensitive_curves=True,
        gradient_checkpointing=True,
    )
    trainer.train()
    trainer.save_pipeline()
    private = tmp_path / "model" / "private"
    assert sorted(path.name for path in (private / "samples").iterdir()) == ["step-3.png", "step-6.png"]
    assert sorted(path.name for path in (private / "checkpoints").iterdir()) == [
        *("checkpoint-0", "checkpoint-3", "checkpoint-6", "checkpoint-7")
    ]
    seen = [event["visible"] for event in trainer.ledger._journal.events if "visible" in event]
    checkpoints = ["checkpoint-0", "checkpoint-3", "checkpoint-6", "checkpoint-7"]
    assert seen == [
        "central_images",
        *checkpoints[:2],
        "samples",
        checkpoints[2],
        "samples",
        checkpoints[3],
        "pipeline",
    ]

    log = min(private.rglob("events.out.tfevents*"), key=lambda path: len(path.parts)).parent
    curves = EventAccumulator(str(log)).Reload()
    assert set(curves.Tags()["scalars"]) == {"epsilon", "learning_rate", "loss_on_central_images"}  # all public
    assert [event.step for event in curves.Scalars("epsilon")] == list(range(1, 8))
    assert [event.step for event in curves.Scalars("loss_on_central_images")] == [1, 2, 3]

    rows = (private / "sensitive_curves.csv").read_text().splitlines()
    assert all(float(row.split(",")[1]) > 0 for row in rows)
    remarks = json.loads((tmp_path / "model" / "privacy.json").read_text())["remarks"]
    assert any("sensitive_curves.csv" in remark for remark in remarks)


def test_nothing_of_the_records_is_written_down_unasked(tmp_path):
    trainer = make_trainer(tmp_path / "model", max_train_steps=1, central_train_steps=1)
    trainer.train()
    trainer.save_pipeline()
    assert not (tmp_path / "model" / "private" / "sensitive_curves.csv").exists()
    assert json.loads((tmp_path / "model" / "privacy.json").read_text())["remarks"] == []


def test_a_logger_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="trackio is not installed"):
        make_trainer(tmp_path / "model", logger="trackio")


def test_a_logger_that_cannot_start_is_named_before_any_record_is_read(tmp_path):
    trainer = make_trainer(tmp_path / "model", logger="tensorboard", logging_dir="journal.jsonl")  # a file
    with pytest.raises(InputError, match=r"logger tensorboard cannot start \(.*or resume with another `logger`"):
        trainer.train()
    assert trainer.ledger.mechanisms == []
