"""Features of a public model: what one record can change, whatever the model is, and what they follow from."""

import math
import re

import pytest
import torch
from torch import nn

from diffusers_dp_curriculum import (
    ImageDataset,
    InputError,
    Mechanism,
    MechanismRandomness,
    PerceptualFeatures,
    PrivacyLedger,
    PublicEyes,
)
from diffusers_dp_curriculum.mechanisms import class_features, perceptual_features
from diffusers_dp_curriculum.mechanisms.class_features import COUNT_WEIGHT, pooled_shape
from diffusers_dp_curriculum.mechanisms.perceptual_features import PerceptualFeatureQuery
from diffusers_dp_curriculum.mechanisms.public_eyes import moments
from helpers import random_records, with_users, without_first


SENSITIVITY = math.sqrt(1 + COUNT_WEIGHT**2)


class Eyes(PublicEyes):
    """Two layers of convolutions with batch normalisation, a map and a vector of each image."""

    def __init__(self, seed=0):
        super().__init__("eyes of a test")
        torch.manual_seed(seed)
        self.first = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
        self.second = nn.Conv2d(5, 4, 3, stride=2)

    def forward(self, images):
        fine = self.first(images.expand(-1, 3, -1, -1)).relu()
        return [fine, self.second(fine).tanh().amax(dim=(2, 3))]


class Wild(Eyes):
    """Eyes whose second layer is changed, to values that no ordinary model has."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, images):
        first, second = super().forward(images)
        return [first, self.change(second, images.mean(dim=(1, 2, 3))[:, None])]


def with_gap(value):
    """A change that leaves the features of black images, and so of the first look, as they are."""
    return lambda layer, brightness: torch.where(brightness > 0.9, value, layer)


EYES = {
    "ordinary": Eyes,
    "huge": lambda: Wild(lambda layer, _: 1e30 * layer),
    "tiny": lambda: Wild(lambda layer, _: 1e-30 * layer),
    "blind": lambda: Wild(lambda layer, _: 0 * layer),
    "one large value": lambda: Wild(lambda layer, _: layer * torch.tensor([1e20, 1, 1, 1])),
    "different norms": lambda: Wild(lambda layer, brightness: layer * 10 ** (30 * brightness - 15)),
    "infinite for white images": lambda: Wild(with_gap(float("inf"))),
    "no number for white images": lambda: Wild(with_gap(float("nan"))),
}


def summed(records, eyes=None):
    """What the query adds noise to."""
    query = PerceptualFeatureQuery(Eyes() if eyes is None else eyes)
    features_of = query.features_of(pooled_shape(records.info.image_shape))
    return class_features._feature_sums(records, features_of, query.num_features)


def query(records, eyes=None, noise_multiplier=1e-9, **options):
    options = {"ledger": PrivacyLedger(1e-5), **options}
    return PerceptualFeatures.from_dataset(records, Eyes() if eyes is None else eyes, noise_multiplier, **options)


@pytest.mark.parametrize("fill", ["random", 0, 255])
@pytest.mark.parametrize("eyes", EYES)
def test_one_record_moves_the_sums_by_the_sensitivity_and_no_more(eyes, fill):
    """Whatever the model makes of an image."""
    eyes, records = EYES[eyes](), random_records(size=40 if fill == "random" else 8)
    if fill != "random":
        records.images[0] = fill
    moved = (summed(records, eyes) - summed(without_first(records), eyes)).norm()
    assert PerceptualFeatureQuery(eyes).mechanism(records.info).sensitivity == SENSITIVITY
    assert COUNT_WEIGHT * (1 - 1e-12) <= moved <= SENSITIVITY * (1 + 1e-12)
    if type(eyes) is Eyes and fill == "random":  # so that the bound is tight
        assert moved >= SENSITIVITY * (1 - 1e-5)


def test_no_image_found_by_searching_moves_the_sums_by_more():
    """Random images, black and white ones, and gradient ascent on what the model makes of them."""
    base, eyes = random_records(count=5), Eyes()
    expected, generator = summed(base, eyes), torch.Generator().manual_seed(0)
    for attempt in range(30):
        image = torch.rand(1, 1, 8, 8, generator=generator)
        if attempt % 3 == 1:
            image = (image > 0.5).float()
        if attempt % 3 == 2:
            image.requires_grad_()
            (gradient,) = torch.autograd.grad(sum(layer.square().sum() for layer in eyes.layers(image)), image)
            image = (gradient > 0).float()
        added = ImageDataset(
            torch.cat([base.images, (255 * image.detach()).to(torch.uint8)]),
            torch.cat([base.labels, torch.tensor([attempt % 3])]),
            base.class_names,
        )
        assert (summed(added, eyes) - expected).norm() <= SENSITIVITY * (1 + 1e-12)


@pytest.mark.parametrize("labels", ["of one class", "of all classes"])
@pytest.mark.parametrize("eyes", ["ordinary", "different norms", "no number for white images"])
def test_all_records_of_a_user_move_the_sums_by_at_most_the_sensitivity(eyes, labels):
    eyes, others = EYES[eyes](), random_records(count=20)
    images = torch.cat([torch.full((3, 1, 8, 8), 255, dtype=torch.uint8), random_records(count=50).images])
    of_user = torch.ones(53, dtype=torch.int64) if labels == "of one class" else torch.arange(53) % 3
    everybody = ImageDataset(
        torch.cat([others.images, images]), torch.cat([others.labels, of_user]), others.class_names
    )
    users = torch.cat([torch.arange(20) % 7, torch.full((53,), 7)])
    moved = summed(with_users(everybody, users), eyes) - summed(with_users(others, torch.arange(20) % 7), eyes)
    assert moved.norm() <= SENSITIVITY * (1 + 1e-12)


def test_sums_are_those_of_the_formula_of_every_record_once():
    records, eyes = random_records(count=70, channels=3, size=10), Eyes()
    expected = torch.zeros(3, 2 * 9 + 1, dtype=torch.float64)
    for image, label in zip(records.images, records.labels, strict=True):
        with torch.no_grad():
            fine, vector = eyes.eval()(image[None].float() / 255)
        layers = [fine[0].mean(dim=(1, 2)).double(), vector[0].double()]
        first = torch.cat([layer / layer.norm() for layer in layers])
        second = first**2 / (first**2).norm()
        expected[label] += torch.cat([first / 2, second / 2**0.5, torch.tensor([COUNT_WEIGHT])])
    assert torch.allclose(summed(records, eyes), expected, atol=1e-5)


def test_an_image_without_finite_features_counts_and_adds_none():
    records = ImageDataset(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8), torch.tensor([1]), ["a", "b"])
    sums = summed(records, EYES["no number for white images"]())
    assert sums.tolist() == [[0.0] * 19, [0.0] * 18 + [COUNT_WEIGHT]]


def test_moments_have_norm_one_together():
    layers = [torch.randn(6, 5), 100 * torch.randn(6, 3)]
    found = moments(layers)
    torch.testing.assert_close(found.square().sum(dim=1), torch.ones(6))
    torch.testing.assert_close(found[:, :8].square().sum(dim=1), torch.full((6,), 0.5))
    torch.testing.assert_close(found[:, :5], layers[0] / layers[0].norm(dim=1, keepdim=True) / 2)
    assert (found[:, 8:] >= 0).all()


def test_a_record_is_seen_as_if_it_were_alone(monkeypatch):
    """Also by a model that somebody has left in training mode, and it stays as it was."""
    eyes, images = Eyes().train(), torch.rand(7, 1, 8, 8)
    before = {name: tensor.clone() for name, tensor in eyes.state_dict().items()}
    together = [layer.detach() for layer in eyes.layers(images)]
    alone = [[layer.detach() for layer in eyes.layers(image)] for image in images.split(1)]
    for number, layer in enumerate(together):
        assert torch.allclose(layer, torch.cat([one[number] for one in alone]), atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in eyes.state_dict().items())
    records = random_records(count=101)
    expected = summed(records, eyes)
    monkeypatch.setattr(perceptual_features, "BATCH_SIZE", 7)
    assert torch.allclose(summed(records, eyes.train()), expected, atol=1e-5)


def test_a_model_that_mixes_images_is_refused_before_anything_is_recorded():
    ledger = PrivacyLedger(1e-5)
    with pytest.raises(InputError, match=r"^The features that eyes of a test has of an image depend on the other imag"):
        query(random_records(), Wild(lambda layer, _: layer - layer.mean(dim=0)), ledger=ledger)
    assert ledger.mechanisms == []


def test_the_entry_says_what_was_done_and_comes_before_the_release(monkeypatch):
    ledger = PrivacyLedger(1e-5)
    features = query(random_records(), noise_multiplier=7.0, ledger=ledger)
    assert ledger.mechanisms == [features.mechanism] == [Mechanism("perceptual_features", 7.0, 1.0, 1, SENSITIVITY)]

    class Refuses(PrivacyLedger):
        def record(self, mechanism):
            raise RuntimeError("no entry")

    monkeypatch.setattr(class_features, "_feature_sums", lambda *_: pytest.fail("read before the entry was durable"))
    with pytest.raises(RuntimeError, match="no entry"):
        query(random_records(), ledger=Refuses(1e-5))


def test_noise_is_on_every_number():
    empty = ImageDataset(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ["a", "b"])
    asked, randomness = PerceptualFeatureQuery(Eyes(), 3.0), MechanismRandomness()
    released = [asked.release(empty, PrivacyLedger(1e-5), randomness) for _ in range(200)]
    noise = torch.stack([torch.cat([f.sums, COUNT_WEIGHT * f.counts[:, None]], dim=1) for f in released])
    assert noise.shape == (200, 2, 2 * 9 + 1)
    assert abs((noise / (3 * SENSITIVITY)).square().mean(dim=0) - 1).max() < 6 * (2 / 200) ** 0.5


def test_images_are_compared_in_the_features_of_the_query_and_gradients_reach_them(monkeypatch):
    monkeypatch.setattr(perceptual_features, "BATCH_SIZE", 4)
    eyes, records = Eyes(), random_records(count=10)
    features = query(records, eyes)
    images = (records.images.float() / 255).requires_grad_()
    made = features.feature_map(torch.device("cpu"), eyes)(images)
    sums = torch.stack([made[records.labels == label].sum(dim=0) for label in range(3)])
    assert torch.allclose(sums.double(), features.sums, atol=1e-4)
    made[:, 0].sum().backward()
    assert (images.grad.abs().sum(dim=(1, 2, 3)) > 0).all()
    assert all(p.grad is None for p in eyes.parameters())


def test_disk_keeps_what_tells_the_model_from_others(tmp_path):
    features = query(random_records(), noise_multiplier=2.0)
    features.save_to_disk(tmp_path / "features")
    loaded = PerceptualFeatures.load_from_disk(tmp_path / "features")
    for name in ("sums", "counts"):
        assert torch.equal(getattr(loaded, name), getattr(features, name))
    for name in ("mechanism", "class_names", "image_shape", "eyes_name", "eyes_fingerprint"):
        assert getattr(loaded, name) == getattr(features, name)
    loaded.feature_map(torch.device("cpu"), Eyes())
    for other in (None, Eyes(seed=1)):
        with pytest.raises(InputError, match="are those of eyes of a test as it was at that time: give the same"):
            loaded.feature_map(torch.device("cpu"), other)


def test_the_progress_bar_does_not_tell_the_number_of_records(monkeypatch, capsys):
    """It is not public where users are the unit of privacy."""
    monkeypatch.setattr(class_features, "SECONDS_WITHOUT_BAR", 0)
    summed(with_users(random_records(count=4321 // 7), torch.arange(4321 // 7) % 100))
    printed = capsys.readouterr().err
    assert re.search(r"Features of the records: +\d+%", printed)
    assert "617" not in printed
