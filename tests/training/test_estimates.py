"""Time and memory in the plan come from a rehearsal of real steps, which changes nothing."""

import gc
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.mechanisms.randomness import MechanismRandomness
from diffusers_dp_curriculum.memory import enough_memory
from diffusers_dp_curriculum.training import estimates
from diffusers_dp_curriculum.training.estimates import Estimate, estimate
from diffusers_dp_curriculum.training.stages import warm_up_stages
from helpers import tiny_unet
from helpers.processes import exit_code, fork
from helpers.runs import make_config, make_trainer
from helpers.tensor_memory import TensorMemory


pytestmark = pytest.mark.usefixtures("fresh_accelerator")

MIB = 2**20
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere freed memory is not given back")


def estimate_of(trainer, gradients_of=None):
    gradients_of = gradients_of or trainer.gradients_of
    size = trainer.records.images.nbytes
    count = len(trainer.records)
    return estimate(trainer.unet, trainer.loss, gradients_of, trainer.info, count, size, trainer.args, trainer.stages)


def wide_unet():
    """A network with 17 MiB of parameters."""
    return tiny_unet(block_out_channels=(128, 128))


def test_the_steps_are_rehearsed_as_they_will_be(tmp_path):
    """Passes are in the run's number type and in training mode: 4 images of the warm-up, then 3 records x 2 draws."""
    trainer = make_trainer(tmp_path / "model", mixed_precision="bf16", max_physical_batch_size=3)
    trainer.unet.eval()
    passes = []
    trainer.unet.register_forward_hook(
        lambda unet, inputs, output: passes.append((len(inputs[0]), output.sample.dtype, unet.training))
    )
    trainer.describe_plan()
    assert passes == [(rows, torch.bfloat16, True) for rows in (4, 4, 6, 6, 6)]


def test_batches_larger_than_expected_are_rehearsed(tmp_path):
    """A Poisson batch of 10 records on average sometimes has 14."""
    trainer = make_trainer(tmp_path / "model", max_physical_batch_size=14, central_statistic="none")
    rows = []
    trainer.unet.register_forward_hook(lambda _, inputs, output: rows.append(len(inputs[0])))
    trainer.describe_plan()
    assert rows[0] == 14 * 2


def test_a_rehearsal_leaves_everything_as_it_was(tmp_path):
    trainer = make_trainer(tmp_path / "model", lr_scheduler="linear", adam_weight_decay=0.1)
    unet = trainer.unet.eval()
    unet.conv_in.train()
    unet.conv_out.weight.grad = gradient = torch.ones_like(unet.conv_out.weight)
    weights = {name: value.clone() for name, value in unet.state_dict().items()}
    modes, state = [module.training for module in unet.modules()], torch.get_rng_state()
    numpy_state = np.random.get_state()[1].tolist()
    trainer.describe_plan()
    assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())
    assert [module.training for module in unet.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state
    assert [name for name, p in unet.named_parameters() if p.grad is not None] == ["conv_out.weight"]
    assert unet.conv_out.weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert not any(getattr(p, name, None) for p in unet.parameters() for name in ("grad_sample", "summed_grad"))
    assert not (tmp_path / "model").exists()


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock by one to which the test adds seconds with the returned function."""
    passed = [0.0]
    monkeypatch.setattr(estimates, "_now", lambda device: passed[0])

    def add(seconds):
        passed[0] += seconds

    return add


def test_time_counts_every_physical_batch_and_the_noise_of_every_step(tmp_path, monkeypatch, clock):
    """By the clock of this test a physical batch takes 0.1 seconds, and the noise of a parameter 2 milliseconds."""
    trainer = make_trainer(
        tmp_path / "model", max_physical_batch_size=2, train_batch_size=20, max_train_steps=30, central_statistic="none"
    )
    normal = MechanismRandomness.normal
    monkeypatch.setattr(MechanismRandomness, "normal", lambda *inputs: clock(0.002) or normal(*inputs))
    zeros = {name: torch.zeros(2, *p.shape) for name, p in trainer.unet.named_parameters()}

    def gradients_of(draws):
        clock(0.1)
        return {name: gradient[: len(draws.noisy)].clone() for name, gradient in zeros.items()}

    assert estimate_of(trainer, gradients_of).seconds == pytest.approx(30 * (10 * 0.1 + len(zeros) * 0.002))


def test_time_counts_the_warm_up(tmp_path, clock):
    trainer = make_trainer(tmp_path / "model", central_train_steps=1000)
    trainer.unet.register_forward_hook(lambda _, inputs, output: clock(0.05 if len(inputs[0]) == 4 else 0))
    assert estimate_of(trainer).seconds == pytest.approx(1000 * 0.05)


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [({}, 9, 99), ({"trainable": "lora", "central_statistic": "none", "frequency_features": 0}, 1, 5)],
    ids=["all", "lora"],
)
def test_memory_is_what_a_run_takes(tmp_path, monkeypatch, options, least, most):
    """The estimate has gradients, sums and noise in float64, Adam's moments and the average, as a run has."""
    trainer = make_trainer(
        tmp_path / "model",
        tiny_unet(block_out_channels=(64, 64)),
        max_physical_batch_size=4,
        train_batch_size=20,
        max_train_steps=2,
        central_batch_size=1,
        noise_multiplicity=1,
        **options,
    )
    network = sum(p.numel() * 4 for p in trainer.unet.parameters())
    monkeypatch.setattr(estimates, "PeakMemory", TensorMemory)
    expected = estimate_of(trainer)
    assert expected.network_bytes == network
    assert expected.images_bytes == 60 * 1 * 8 * 8
    assert least * network < expected.step_bytes < most * network
    trainer.describe_plan = lambda: ""
    with TensorMemory() as run:
        trainer.train()
    assert 0.9 * expected.step_bytes < run.num_bytes < 1.01 * expected.step_bytes


def test_what_is_printed_is_what_it_is_made_of():
    facts = {"seconds": 7300.0, "step_bytes": 3 * 2**29, "network_bytes": 20 * MIB, "images_bytes": 1}
    assert str(Estimate(**facts, on_gpu=False)).splitlines() == [
        "  expected time   about 2 hours",
        "  memory          1.5 GiB a process beside Python itself: 1.5 GiB for a step, 20 MiB for the network, "
        "1 MiB for the images",
    ]
    assert str(Estimate(**facts, on_gpu=True)).splitlines()[1] == (
        "  memory          1.5 GiB of a GPU: 1.5 GiB for a step, 20 MiB for the network; and beside Python itself "
        "1 MiB for the images"
    )


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"central_batch_size": 10**13}, "lower `central_batch_size`"),  # more than the address space of a process
        ({"noise_multiplicity": 10**13}, "lower `max_physical_batch_size`"),
        ({"noise_multiplicity": 10**13, "max_physical_batch_size": 1}, "lower `noise_multiplicity`"),
    ],
)
def test_too_little_memory_is_found_before_anything_is_spent(tmp_path, options, remedy):
    trainer = make_trainer(tmp_path / "model")
    trainer.args = make_config(tmp_path / "model", frequency_features=0, **options)
    trainer.stages = warm_up_stages(trainer.args)
    with pytest.raises(InputError, match=f"does not fit into the memory: {remedy}") as refusal:
        trainer.train()
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_errors_of_every_allocator_are_one_sentence(error):
    expected = "A batch of 2 does not fit into the memory: lower it."
    with pytest.raises(InputError, match=expected), enough_memory("A batch of 2", "lower it"):
        raise error


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("A batch of 2", "lower it"):
        raise RuntimeError("the shapes do not fit")


@pytest.mark.slow
@on_linux
def test_a_plan_that_just_fits_does_not_run_out_of_memory_when_it_is_carried_out(tmp_path):
    """With any amount of memory, the run is either refused before anything is spent, or succeeds.

    `pytest -m slow tests/training/test_estimates.py` takes a minute; the test before it refuses what never fits.
    """

    def run(mebibytes):
        trainer = make_trainer(
            tmp_path / str(mebibytes), wide_unet(), max_physical_batch_size=4, central_statistic="none"
        )
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + mebibytes * MIB,) * 2)
        try:
            trainer.train()
        except InputError as error:
            refused = "does not fit into the memory: lower `max_physical_batch_size`" in str(error)
            return 2 if refused and not (tmp_path / str(mebibytes)).exists() else 3
        return 0

    gc.collect()
    codes = [exit_code(fork(lambda mebibytes=mebibytes: run(mebibytes))) for mebibytes in range(20, 340, 40)]
    assert set(codes) == {0, 2}, codes
