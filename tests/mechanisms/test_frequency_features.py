"""Mechanism 2: what one record can change, what noise there is, where the frequencies come from."""

import math

import pytest
import torch

from diffusers_dp_curriculum import FrequencyFeatures, ImageDataset, InputError, Mechanism, PrivacyLedger
from diffusers_dp_curriculum.auditing.query_attack import ScaledNoise
from diffusers_dp_curriculum.mechanisms import class_features
from diffusers_dp_curriculum.mechanisms.class_features import COUNT_WEIGHT, pooled_shape
from diffusers_dp_curriculum.mechanisms.frequency_features import FrequencyFeatureQuery, fourier_features
from diffusers_dp_curriculum.mechanisms.randomness import MechanismRandomness
from helpers import random_records, records_of_one_value, without_first
from helpers.tensor_memory import TensorMemory


def summed(records, num_features=60, seed=0):
    """What the query adds noise to."""
    query = FrequencyFeatureQuery(num_features, seed=seed)
    features_of = query.features_of(pooled_shape(records.info.image_shape))
    return class_features._feature_sums(records, features_of, num_features)


def query(records, num_features=60, noise_multiplier=1e-9, **options):
    options = {"ledger": PrivacyLedger(1e-5), **options}
    return FrequencyFeatures.from_dataset(records, num_features, noise_multiplier, **options)


SENSITIVITY = math.sqrt(1 + COUNT_WEIGHT**2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 40])
@pytest.mark.parametrize("fill", ["random", 0, 255])
@pytest.mark.parametrize("num_features", [2, 60, 2048])
def test_one_record_moves_the_sums_by_the_sensitivity_and_no_more(channels, size, fill, num_features):
    """Features have a norm of 1 whatever the image, so the bound is attained, and rounding does not pass it."""
    records = random_records(channels=channels, size=size)
    if fill != "random":
        records.images[0] = fill
    moved = (summed(records, num_features) - summed(without_first(records), num_features)).norm()
    assert FrequencyFeatureQuery(num_features).mechanism(records.info).sensitivity == SENSITIVITY
    assert SENSITIVITY * (1 - 1e-5) <= moved <= SENSITIVITY * (1 + 1e-12)


@pytest.mark.parametrize("others", ["elsewhere", "none"])
def test_the_only_record_of_a_class_moves_no_more_than_any_other(others):
    """Adding it to an empty class, or to an empty data set, is where a division or a branch would show."""
    records = random_records(count=40 if others == "elsewhere" else 1)
    records.labels[1:] = 1
    records.labels[0] = 2
    moved = (summed(records) - summed(without_first(records))).norm(dim=1)
    assert moved[2] == pytest.approx(SENSITIVITY, rel=1e-5)
    assert moved[:2].tolist() == [0, 0]


def test_no_image_among_many_moves_the_sums_by_more_than_the_sensitivity():
    """A search over images for the worst one: random ones, black and white ones, and gradient ascent's direction."""
    base = random_records(count=5)
    expected = summed(base)
    frequencies = FrequencyFeatureQuery(60).frequencies((1, 8, 8))
    for attempt in range(100):
        image = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8)
        if attempt % 3 == 1:
            image = (image > 127).to(torch.uint8) * 255
        if attempt % 3 == 2:  # along one frequency, where its feature is the largest
            image = (frequencies[attempt % 30].view(1, 1, 8, 8) > 0).to(torch.uint8) * 255
        added = ImageDataset(
            torch.cat([base.images, image]), torch.cat([base.labels, torch.randint(0, 3, (1,))]), base.class_names
        )
        assert (summed(added) - expected).norm() <= SENSITIVITY * (1 + 1e-12)


def test_a_record_adds_the_same_whatever_the_others_are_and_in_whichever_piece(monkeypatch):
    """Sums are exact: neither the order nor the size of the pieces changes a digit."""
    records = random_records(count=101, size=8)
    expected = summed(records)
    shuffled = torch.randperm(101)
    assert torch.equal(
        summed(ImageDataset(records.images[shuffled], records.labels[shuffled], ["a", "b", "c"])), expected
    )
    for values in (1, 1000, 60 * 7):
        monkeypatch.setattr(class_features, "VALUES_AT_ONCE", values)
        assert torch.equal(summed(records), expected)


def test_sums_are_those_of_the_features_of_every_record_once():
    """Against the formula, one record at a time."""
    records = random_records(count=90, channels=3, size=6)
    frequencies = FrequencyFeatureQuery(40, seed=5).frequencies((3, 6, 6)).double()
    expected = torch.zeros(3, 41, dtype=torch.float64)
    for image, label in zip(records.images, records.labels, strict=True):
        phases = frequencies @ (image.double() / 255).flatten()
        expected[label, :40] += torch.cat([phases.cos(), phases.sin()]) / 20**0.5
        expected[label, 40] += COUNT_WEIGHT
    assert torch.allclose(summed(records, 40, seed=5), expected, atol=1e-6)


def test_large_images_are_pooled_to_32_pixels_first():
    records = random_records(count=10, channels=3, size=64)
    small = torch.nn.functional.avg_pool2d(records.images.double(), 2)
    features = query(records)
    assert features.image_shape == (3, 32, 32)
    frequencies = features.frequencies.double()
    expected = torch.zeros_like(features.sums)
    for image, label in zip(small / 255, records.labels, strict=True):
        expected[label] += fourier_features(image[None], frequencies)[0]
    assert torch.allclose(features.sums, expected, atol=1e-6)


def test_frequencies_follow_from_the_seed_alone():
    """Other records, another global seed and another generator of noise have the same frequencies."""
    releases = []
    for count, seed in ((20, 0), (40, 1)):
        torch.manual_seed(seed)
        releases.append(query(random_records(count) if seed else records_of_one_value(9), noise_multiplier=5.0, seed=3))
    assert torch.equal(releases[0].frequencies, releases[1].frequencies)
    assert not torch.equal(releases[0].frequencies, query(random_records(), seed=4).frequencies)
    records = random_records(20)
    (sums,) = FrequencyFeatureQuery(60, seed=3).noisy_sums(records, PrivacyLedger(1e-5), ScaledNoise(0.0))
    assert torch.equal(sums, summed(records, 60, seed=3))


def test_frequencies_have_the_widths_of_the_kernels():
    frequencies = FrequencyFeatureQuery(4000, kernel_widths=[2.0, 5.0]).frequencies((1, 16, 16))
    assert frequencies[0::2].std() == pytest.approx(1 / 2, rel=0.02)
    assert frequencies[1::2].std() == pytest.approx(1 / 5, rel=0.02)
    images = torch.rand(2, 1, 16, 16)
    features = fourier_features(images, frequencies)
    squared = (images[0] - images[1]).square().sum()
    kernel = sum(math.exp(-squared / (2 * width**2)) for width in (2.0, 5.0)) / 2
    assert float(features[0] @ features[1]) == pytest.approx(kernel, abs=0.13)  # six standard errors


def noises(queries=60, noise_multiplier=3.0, secure_rng=False, num_features=400):
    """What several queries of no record at all release: the noise alone, `(queries, classes, D + 1)`."""
    empty = ImageDataset(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ["a", "b", "c"])
    released = []
    for _ in range(queries):
        features = FrequencyFeatureQuery(num_features, noise_multiplier).release(
            empty, PrivacyLedger(1e-5), MechanismRandomness(secure_rng=secure_rng)
        )
        released.append(torch.cat([features.sums, COUNT_WEIGHT * features.counts[:, None]], dim=1))
    return torch.stack(released)


@pytest.mark.parametrize("secure_rng", [False, True])
def test_noise_has_the_standard_deviation_that_the_ledger_says(secure_rng):
    noise = noises(secure_rng=secure_rng) / (3.0 * SENSITIVITY)
    assert noise.square().mean().sqrt() == pytest.approx(1, abs=6 / (2 * noise.numel()) ** 0.5)
    for label in range(3):
        assert noise[:, label].square().mean().sqrt() == pytest.approx(1, abs=6 / (2 * noise[:, 0].numel()) ** 0.5)
    # Every coordinate's, the counts' too.
    assert abs(noise.flatten(1).square().mean(dim=0) - 1).max() < 8 * (2 / 60) ** 0.5
    assert noise[:, :, -1].square().mean().sqrt() == pytest.approx(1, abs=6 / (2 * 180) ** 0.5)
    assert (noise**4).mean() == pytest.approx(3, abs=6 * (96 / noise.numel()) ** 0.5)


def test_noise_is_independent_between_coordinates_classes_and_queries():
    noise = noises()
    one, other = noise[:, 0], noise[:, 1]
    for pair in ((noise[1:], noise[:-1]), (one, other), (one[:, 1:], one[:, :-1])):
        correlation = torch.corrcoef(torch.stack([part.flatten() for part in pair]))[0, 1]
        assert abs(correlation) < 6 / pair[0].numel() ** 0.5


def test_noise_is_on_the_sums_and_does_not_follow_the_size_of_a_class():
    """Noise on a mean over the true count would be a thousand times larger on the sums of a class of a thousand."""
    records = records_of_one_value(128)
    records.labels[:] = 0
    exact = query(records, 1000).sums
    noise = query(records, 1000, 5.0).sums - exact
    for label in range(3):
        assert noise[label].std() == pytest.approx(5.0 * SENSITIVITY, rel=6 / 2000**0.5)


def test_counts_are_noisy_numbers_of_records():
    records = records_of_one_value(100)
    records = ImageDataset(records.images[:1800], records.labels[:1800].clamp(max=1), records.class_names)
    assert query(records).counts.tolist() == pytest.approx([600, 1200, 0], abs=0.01)
    many = torch.stack([query(records, noise_multiplier=2.0).counts for _ in range(100)])
    assert many.mean(dim=0).tolist() == pytest.approx([600, 1200, 0], abs=6 * 2 * SENSITIVITY / COUNT_WEIGHT / 10)
    assert many.std(dim=0).min() > 1


def test_means_are_sums_over_counts_and_bounded_where_there_is_no_record():
    records = random_records(count=300)
    records.labels[:] = records.labels.clamp(max=1)
    features = query(records)
    frequencies = features.frequencies.double()
    for label in range(2):
        images = records.images[records.labels == label].double() / 255
        assert torch.allclose(features.means()[label], fourier_features(images, frequencies).mean(0).float(), atol=1e-5)
    assert query(records, noise_multiplier=10.0).means().norm(dim=1).max() <= 1 + 1e-5


def test_the_ledger_entry_comes_before_the_release(monkeypatch):
    class Refuses(PrivacyLedger):
        def record(self, mechanism):
            raise RuntimeError("no entry")

    monkeypatch.setattr(class_features, "_feature_sums", lambda *_: pytest.fail("read before the entry was durable"))
    with pytest.raises(RuntimeError, match="no entry"):
        query(random_records(), ledger=Refuses(1e-5))


def test_entry_says_what_was_done():
    ledger = PrivacyLedger(1e-5)
    features = query(random_records(), 60, 7.0, ledger=ledger)
    assert ledger.mechanisms == [features.mechanism] == [Mechanism("frequency_features", 7.0, 1.0, 1, SENSITIVITY)]


def test_a_query_that_would_pass_the_target_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(class_features, "_feature_sums", lambda *_: pytest.fail("read beyond the target"))
    ledger = PrivacyLedger(1e-5, target_epsilon=0.1)
    with pytest.raises(InputError, match="1 steps of frequency_features would pass the target epsilon 0.1"):
        query(random_records(), noise_multiplier=1.0, ledger=ledger)
    assert ledger.mechanisms == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 3}, "`num_features` is 3: give an even number above 0"),
        ({"num_features": 0}, "`num_features` is 0"),
        ({"noise_multiplier": 0.0}, "noise multiplier"),
        ({"kernel_widths": 3.0}, "`kernel_widths` is 3.0: give a list"),
        ({"kernel_widths": []}, "give a list, with a number from 1e-6 to 1e6 for each item"),
        ({"kernel_widths": [1.0, -1.0]}, "`kernel_widths` is -1.0: give a number from 1e-6"),
    ],
)
def test_bad_input_is_refused_before_anything_is_recorded(options, message):
    ledger = PrivacyLedger(1e-5)
    with pytest.raises(InputError, match=message):
        query(random_records(), **{"ledger": ledger, **options})
    assert ledger.mechanisms == []


def test_a_seed_for_the_noise_takes_the_privacy_away_and_says_so():
    ledger, records = PrivacyLedger(1e-5), random_records()
    first, second = (
        query(records, noise_multiplier=5.0, ledger=ledger, randomness=MechanismRandomness(insecure_noise_seed=3))
        for _ in range(2)
    )
    assert torch.equal(first.sums, second.sums)
    assert "insecure_noise_seed" in ledger.not_private
    assert not torch.equal(*(query(records, noise_multiplier=5.0).sums for _ in range(2)))


def test_disk_keeps_sums_counts_frequencies_and_the_entry(tmp_path):
    features = query(random_records(channels=3), noise_multiplier=2.0)
    features.save_to_disk(tmp_path / "features")
    loaded = FrequencyFeatures.load_from_disk(tmp_path / "features")
    for name in ("sums", "counts", "frequencies"):
        assert torch.equal(getattr(loaded, name), getattr(features, name))
    for name in ("mechanism", "class_names", "image_shape"):
        assert getattr(loaded, name) == getattr(features, name)
    with pytest.raises(InputError, match="holds no frequency features"):
        FrequencyFeatures.load_from_disk(tmp_path)


def test_a_query_takes_pieces_of_bounded_memory_and_no_operation_for_each_record(monkeypatch):
    monkeypatch.setattr(class_features, "VALUES_AT_ONCE", 2**18)
    seen = {}
    for count in (400, 800):
        records = random_records(count)
        with TensorMemory() as memory:
            query(records, 2000)
        seen[count] = memory
    assert seen[800].operations < seen[400].operations + 0.5 * 400
    assert seen[800].num_bytes < 1.1 * seen[400].num_bytes
