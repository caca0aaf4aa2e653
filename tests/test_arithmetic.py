"""A mechanism computes under the settings for which its sensitivity is proved, whatever the caller has set."""

import ast
import contextlib
import itertools
import json
from pathlib import Path

import pytest
import torch

import diffusers_dp_curriculum
from diffusers_dp_curriculum.arithmetic import own_arithmetic
from diffusers_dp_curriculum.data.dataset_info import DatasetInfo
from diffusers_dp_curriculum.data.image_dataset import ImageDataset
from diffusers_dp_curriculum.mechanisms import central_images
from diffusers_dp_curriculum.mechanisms.central_images import CentralImageDataset, CentralImageQueries
from diffusers_dp_curriculum.mechanisms.frequency_features import FrequencyFeatures
from diffusers_dp_curriculum.privacy.ledger import PrivacyLedger
from helpers import records_of_one_value, tiny_records
from helpers.dp_sgd_steps import fixed_draws, make_dp_sgd, parameters
from helpers.runs import make_trainer


@contextlib.contextmanager
def default_dtype(dtype):
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(previous)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    yield
    torch.set_default_device(None)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def products_in_bfloat16():
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@contextlib.contextmanager
def one_product_in_bfloat16():
    if not hasattr(torch.backends.mkldnn.matmul, "fp32_precision"):
        pytest.skip("PyTorch has this setting since 2.9")
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    yield
    torch.backends.mkldnn.matmul.fp32_precision = "none"


SETTINGS = {
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default float64": lambda: default_dtype(torch.float64),
    "default device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": deterministic,
    "medium": products_in_bfloat16,
    "one by one": one_product_in_bfloat16,
}
ambient = pytest.mark.parametrize("setting", SETTINGS)


def settings():
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
    ]


def products():
    backends = (torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    return [getattr(backend, "fp32_precision", None) for backend in backends]  # None before PyTorch 2.9


@ambient
def test_within_the_context_nothing_is_set_and_afterwards_all_of_it_is(setting):
    plain = settings()
    with SETTINGS[setting]():
        before = settings(), products()
        with contextlib.suppress(ZeroDivisionError), own_arithmetic():
            assert settings() == plain
            assert torch.get_float32_matmul_precision() == "highest"
            made = torch.rand(3, requires_grad=True) @ torch.rand(3)
            assert (made.dtype, made.device.type, made.requires_grad) == (torch.float32, "cpu", True)
            raise ZeroDivisionError
        assert (settings(), products()) == before
    assert settings() == plain


@ambient
@pytest.mark.parametrize("statistic", ["mean", "mode"])
def test_central_images_are_what_they_are_without(setting, statistic):
    """With hardly any noise the release is the exact statistic, here of records whose sums need more than float32."""
    records = records_of_one_value(77)

    def query():
        ledger = PrivacyLedger(1e-5)
        return CentralImageDataset.from_dataset(records, 1, statistic, 1e-9, 1.0, ledger=ledger, pool_factor=2)

    expected = query()
    with SETTINGS[setting]():
        central = query()
    assert torch.allclose(central.images, expected.images, atol=1e-6)
    assert (central.images.dtype, central.images.device.type) == (torch.float32, "cpu")


@ambient
@pytest.mark.parametrize("statistic", ["mean", "mode"])
def test_one_record_among_many_moves_the_sums_by_at_most_the_sensitivity(setting, statistic, monkeypatch):
    """Compares the sums that the mechanism adds noise to, with and without the record."""
    records, released = records_of_one_value(255), []
    for name in ("_mean_sums", "_mode_votes"):
        original = getattr(central_images, name)
        monkeypatch.setattr(
            central_images,
            name,
            lambda *inputs, original=original: released.append(original(*inputs)) or released[-1],
        )
    with SETTINGS[setting]():
        for count in range(3000, 2980, -1):  # a rounded sum stays the same for some records, and then jumps
            fewer = ImageDataset(records.images[:count], records.labels[:count], records.class_names)
            CentralImageDataset.from_dataset(fewer, 1, statistic, 1.0, 1.0, ledger=PrivacyLedger(1e-5))
    sensitivity = CentralImageQueries(1, statistic, 1.0, 1.0).mechanism(DatasetInfo(1, 1, 8)).sensitivity
    assert released[0].dtype == torch.float64
    assert all((one - other).norm() <= sensitivity * (1 + 1e-9) for one, other in itertools.pairwise(released))


@ambient
def test_frequency_features_are_what_they_are_without(setting):
    """With hardly any noise: the sums to their last digit."""
    records = tiny_records()

    def query():
        return FrequencyFeatures.from_dataset(records, 60, 1e-9, ledger=PrivacyLedger(1e-5))

    expected = query()
    with SETTINGS[setting]():
        features = query()
    assert torch.allclose(features.sums, expected.sums, atol=1e-7)
    assert (features.sums.dtype, features.sums.device.type) == (torch.float64, "cpu")


def private_step(setting):
    mechanism = make_dp_sgd(noise_multiplier=1e-9, batch_size=60)
    mechanism.loss.draw_each = fixed_draws
    before = parameters(mechanism.model)
    with setting():
        mechanism.step()
    return before - parameters(mechanism.model)


@pytest.fixture(scope="module")
def expected_step():
    return private_step(contextlib.nullcontext)


@ambient
def test_a_private_step_is_what_it_is_without(setting, expected_step):
    step = private_step(SETTINGS[setting])
    assert (step - expected_step).norm() < 1e-4 * expected_step.norm()


@ambient
def test_records_are_sampled_at_the_rate_of_the_ledger(setting):
    """In bfloat16 there are only 256 random numbers, and a rate of 0.0043 would become 0.0062."""
    mechanism = make_dp_sgd(records=tiny_records(20_000), batch_size=86, steps=40)
    sizes = []
    mechanism._set_grad_samples = lambda piece: sizes.append(len(piece))
    mechanism.optimizer.step = lambda: None
    mechanism.max_physical_batch_size = 20_000
    with SETTINGS[setting]():
        for _ in range(40):
            mechanism.step()
    assert sum(sizes) == pytest.approx(40 * 86, abs=6 * (40 * 86) ** 0.5)


@pytest.mark.usefixtures("fresh_accelerator")
@ambient
def test_a_whole_run_is_as_it_would_be_without(tmp_path, setting):
    trainer = make_trainer(tmp_path / "model")
    with SETTINGS[setting]():
        trainer.train()
        trainer.save_pipeline()
    assert trainer.released["central_images"].images.dtype == torch.float32
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.unet.parameters())
    privacy = json.loads((tmp_path / "model" / "privacy.json").read_text())
    assert [entry["steps"] for entry in privacy["mechanisms"]] == [5, 4]


def test_no_mechanism_can_be_recorded_without_arithmetic_of_its_own():
    """The package records mechanisms through `PrivacyLedger.begin` alone."""
    package = Path(diffusers_dp_curriculum.__file__).parent
    calls = {"begin": [], "record": []}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", None) in calls:
                calls[node.func.attr].append(path.name)
    assert calls["record"] == []
    assert sorted(calls["begin"]) == ["central_images.py", "class_features.py", "dp_sgd.py"]
