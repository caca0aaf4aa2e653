"""Runs on a device other than the CPU, tried on a stand-in for a GPU that refuses what a GPU refuses."""

import contextlib
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

from diffusers_dp_curriculum import (
    ClassConditionalPipeline,
    DPCurriculumConfig,
    FrequencyFeatures,
    FrequencyImageDataset,
    PerceptualFeatures,
    PrivacyLedger,
    PublicEyes,
    generate_dataset,
    load_image_dataset,
)
from diffusers_dp_curriculum.auditing import audit as audit_module
from diffusers_dp_curriculum.auditing.audit import audit_run
from diffusers_dp_curriculum.evaluation.features import Pixels
from diffusers_dp_curriculum.evaluation.metrics import evaluate
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.mechanisms.randomness import MechanismRandomness
from diffusers_dp_curriculum.mechanisms.releases import ReleasedImages
from diffusers_dp_curriculum.sampling.preview import Preview
from diffusers_dp_curriculum.training import auxiliary_generator
from diffusers_dp_curriculum.training.interruption import RunStatus
from diffusers_dp_curriculum.training.stages import warm_up_stages
from diffusers_dp_curriculum.training.warm_up import start_warm_up, warm_up
from helpers import random_records, smallest_unet, tiny_records, tiny_scheduler
from helpers.dp_sgd_steps import make_dp_sgd, parameters
from helpers.runs import interrupted, make_config, make_trainer
from helpers.stand_in_gpu import GPUTensor, StandInGPU, WrongDeviceError


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the stand-in looks into PyTorch's library for Linux")


@contextlib.contextmanager
def on_gpu():
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with StandInGPU() as gpu:
            yield gpu
    except WrongDeviceError as error:
        pytest.fail(f"A GPU would refuse this: {error}")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def all_on_gpu(model):
    return all(isinstance(tensor, GPUTensor) for tensor in (*model.parameters(), *model.buffers()))


def test_the_stand_in_refuses_what_a_gpu_refuses():
    with on_gpu():
        here, there = torch.rand(3), torch.rand(3, device="cuda")
        assert (there + torch.tensor(1.0)).device == there[torch.tensor([0])].device == torch.device("cuda", 0)
        for refused in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: here[torch.tensor([0], device="cuda")] + there,
            lambda: torch.nn.functional.linear(there, torch.rand(2, 3)),
            lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
            lambda: there.normal_(generator=torch.Generator()),
            lambda: torch.rand(3, generator=torch.Generator("cuda")),
            there.numpy,
        ):
            with pytest.raises(WrongDeviceError):
                refused()


def test_the_stand_in_has_random_numbers_and_autocast_of_its_own():
    with on_gpu():
        torch.manual_seed(0)
        first = torch.rand(3, device="cuda").cpu()
        torch.manual_seed(0)
        torch.rand(5)
        with torch.random.fork_rng([torch.device("cuda", 0)]):
            torch.rand(5, device="cuda")
        assert torch.equal(torch.rand(3, device="cuda").cpu(), first)
        layer = torch.nn.Linear(3, 3).to("cuda")
        with torch.autocast("cuda", torch.bfloat16):
            assert layer(torch.rand(2, 3, device="cuda")).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.rand(2, 3, device="cuda")).dtype == torch.float32


def test_the_stand_in_knows_what_the_cpu_waits_for():
    with on_gpu() as gpu:
        here, there = torch.rand(3), torch.rand(3, device="cuda")
        for waits in (there.sum().item, there.cpu, there.nonzero, lambda: there[there > 0], lambda: here.to("cuda")):
            gpu.waits.clear()
            waits()
            assert len(gpu.waits) == 1
        gpu.waits.clear()
        here.pin_memory().to("cuda", non_blocking=True)
        there.clamp(0, 1)[torch.arange(2, device="cuda")] += 1
        assert not gpu.waits
        here.to("cuda", non_blocking=True)  # not from memory that the GPU can read
        assert gpu.waits


def test_a_warm_up_trains_where_the_network_is():
    config = DPCurriculumConfig(central_train_steps=2, central_batch_size=5, frequency_features=0)
    (stage,) = warm_up_stages(config)
    released = ReleasedImages(torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
    with on_gpu():
        unet = smallest_unet().to("cuda")
        before = parameters(unet)
        state = start_warm_up(unet, stage, config)
        loss = DenoisingLoss(tiny_scheduler(), null_label=3, random_flip=True)
        assert warm_up(state, loss, released, stage, config)
        assert all_on_gpu(unet)
        assert (parameters(unet) != before).any()


@pytest.mark.parametrize(("mode", "secure_rng"), [("folded", False), ("loop", True)])
def test_a_private_step_waits_for_nothing(mode, secure_rng):
    """The noise comes from the GPU, or from the CPU and is copied; the last record has a gradient of NaN."""
    with on_gpu() as gpu:
        unet = smallest_unet().to("cuda")
        mechanism = make_dp_sgd(unet=unet, mode=mode, randomness=MechanismRandomness(secure_rng))
        gradients_of = mechanism.gradients_of

        def with_nan(draws):
            gradients = gradients_of(draws)
            gradients["conv_in.weight"][-1] = torch.nan
            return gradients

        mechanism.gradients_of = with_nan
        mechanism.batches = iter([range(3), range(10), []])
        mechanism.step()  # the schedules of noise and optimizer move to the GPU
        gpu.waits.clear()
        before = parameters(unet)
        mechanism.step()
        mechanism.step()  # of an empty batch
        assert not gpu.waits
        after = parameters(unet)
        assert ((after != before) & after.isfinite()).all()


def test_a_preview_is_sampled_where_the_network_is(tmp_path):
    with on_gpu():
        unet = smallest_unet().to("cuda")
        preview = Preview(tiny_scheduler(), tiny_records().info, make_config(tmp_path, guidance_scale=2.0))
        assert preview.grid(unet).tobytes() == preview.grid(unet).tobytes()  # from a generator of the GPU


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.slow
def test_a_whole_run_with_every_stage(tmp_path):
    """Interrupted in DP-SGD and resumed, with pictures of each stage, in bfloat16 and with gradient checkpointing."""
    options = {
        "grad_sample_mode": "folded",
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "max_physical_batch_size": 1,
        "train_batch_size": 2,
        "max_train_steps": 2,
        "central_train_steps": 1,
        "frequency_features": 20,
        "frequency_noise_multiplier": 5.0,
        "frequency_generator_steps": 1,
        "frequency_train_steps": 1,
        "frequency_batch_size": 4,
        "save_images_steps": 1,
    }
    with on_gpu():
        interrupted(tmp_path / "model", after=4, **options)
        trainer = make_trainer(tmp_path / "model", resume_from_checkpoint="latest", **options)
        assert trainer.train() is RunStatus.FINISHED
        assert all_on_gpu(trainer.unet)
        trainer.save_pipeline()
        assert len(list(trainer.paths.samples.glob("*.png"))) == 5
        pipeline = ClassConditionalPipeline.from_pretrained(trainer.output_dir).to("cuda")
        assert generate_dataset(pipeline, 2, num_inference_steps=2)["label"][:] == [0, 1, 2] * 2


def test_a_private_run_waits_once_a_step_and_takes_the_memory_of_its_plan(tmp_path):
    """In float16 and record by record, under a default device of the user's, with gradients that are not finite.

    The CPU waits for one answer: whether training has diverged or a signal asks the run to stop. The plan has
    gradients, sums and noise in float64, Adam's moments and the average, and leaves room for one more network.
    """
    records = tiny_records()
    with on_gpu() as gpu, default_device("cuda"):
        trainer = make_trainer(
            tmp_path / "model",
            smallest_unet(block_out_channels=(16,)),
            records,
            grad_sample_mode="loop",
            mixed_precision="fp16",
            central_statistic="none",
            frequency_features=0,
            noise_multiplicity=1,
            max_physical_batch_size=2,
            train_batch_size=12,  # Poisson sampling leaves no step with one physical batch
            max_train_steps=3,
        )
        assert all_on_gpu(trainer.unet)
        gradients_of, after_step, describe_plan = trainer.gradients_of, trainer._after_step, trainer.describe_plan
        plans, planned, waits, before = [], [], [], gpu.num_bytes

        def with_nan(draws):
            gradients = gradients_of(draws)
            gradients["conv_in.weight"][0] = torch.nan
            return gradients

        def plan():
            plans.append(describe_plan())
            planned.append(gpu.most_bytes - before)
            gpu.most_bytes = gpu.num_bytes

        def count_waits(state, progress, curves, diverged, is_last):
            stopped = after_step(state, progress, curves, diverged, is_last=False)
            waits.append(len(gpu.waits))
            gpu.waits.clear()
            return stopped

        trainer.gradients_of, trainer._after_step, trainer.describe_plan = with_nan, count_waits, plan
        assert trainer.train() is RunStatus.FINISHED
        taken, network = gpu.most_bytes - before, sum(p.nbytes for p in trainer.unet.parameters())
        assert "1 on cuda" in plans[0]
        assert waits[1:] == [1, 1]
        assert 0.9 * planned[0] < taken + network < 1.02 * planned[0]
        assert taken > 9 * network


def test_an_audit_runs_where_the_network_is(monkeypatch):
    monkeypatch.setattr(audit_module, "LOSS_DRAWS", 1)
    loss, records = DenoisingLoss(tiny_scheduler(), null_label=3), tiny_records(6)
    with on_gpu(), default_device("cuda"):
        audit = audit_run(
            smallest_unet(), loss, records, noise_multiplier=1.0, steps=1, gradient_canaries=100, image_canaries=100
        )
    assert all(scores.isfinite().all() for scores in audit.scores.values())


def test_an_evaluation_runs_on_the_gpu_that_there_is():
    images = [random_records(24) for _ in range(3)]
    with on_gpu(), default_device("cuda"):
        evaluation = evaluate(*images, {"pixels": Pixels()}, ["cnn"], epochs=1)
    assert evaluation.confusion["cnn"]["samples"].sum() == 24


class Edges(PublicEyes):
    """A model of a convolution and a buffer."""

    def __init__(self):
        super().__init__("edges")
        self.layer = torch.nn.Conv2d(3, 4, 3)
        self.register_buffer("mean", torch.tensor(0.5))

    def forward(self, images):
        return [self.layer(images.expand(-1, 3, -1, -1) - self.mean).relu()]


def test_a_public_model_looks_at_images_where_it_is(monkeypatch):
    monkeypatch.setattr(auxiliary_generator, "BATCH_SIZE", 12)
    monkeypatch.setattr(auxiliary_generator, "NUM_IMAGES", 20)
    eyes, records = Edges(), tiny_records(60)
    expected = PerceptualFeatures.from_dataset(records, eyes, 1e-9, ledger=PrivacyLedger(1e-5))
    with on_gpu():
        eyes.to("cuda")
        assert all_on_gpu(eyes)
        features = PerceptualFeatures.from_dataset(records, eyes, 1e-9, ledger=PrivacyLedger(1e-5))
        images = FrequencyImageDataset.from_features(features, 2, device="cuda", eyes=eyes)
        assert features.sums.device.type == images.images.device.type == "cpu"
    assert torch.allclose(features.sums, expected.sums, atol=1e-4)
    assert features.eyes_fingerprint == expected.eyes_fingerprint


def test_records_and_images_of_features_are_on_the_cpu_whatever_the_default_device():
    ledger = PrivacyLedger(1e-5)
    with default_device("meta"):
        digits = load_image_dataset(dataset_name="digits")
        features = FrequencyFeatures.from_dataset(digits, 20, 5.0, ledger=ledger)
        images = FrequencyImageDataset.from_features(features, train_steps=1)
    for tensor in (digits.images, digits.labels, images.images, images.labels):
        assert tensor.device.type == "cpu"
