"""Mechanism 1: the change by one record, the noise, and the released images."""

import pytest
import torch

from diffusers_dp_curriculum.data.dataset_info import DatasetInfo
from diffusers_dp_curriculum.data.image_dataset import ImageDataset, load_image_dataset
from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.mechanisms import central_images
from diffusers_dp_curriculum.mechanisms.central_images import CentralImageDataset, CentralImageQueries
from diffusers_dp_curriculum.mechanisms.randomness import MechanismRandomness, entropy_generator
from diffusers_dp_curriculum.privacy.accounting import Mechanism
from diffusers_dp_curriculum.privacy.ledger import PrivacyLedger
from helpers import random_records, records_of_one_value, without_first
from helpers.tensor_memory import TensorMemory


def summed(records, statistic, pool_factor=1):
    """The sums of a query at sample rate 1, before the noise."""
    if statistic == "mean":
        return central_images._mean_sums(records, 1.0, pool_factor, torch.Generator())
    return central_images._mode_votes(records, 1.0, pool_factor, 8, torch.Generator())


@pytest.mark.parametrize("statistic", ["mean", "mode"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pool_factor", [1, 2])
@pytest.mark.parametrize("fill", ["random", 0, 255])
def test_one_record_moves_the_sum_by_at_most_the_sensitivity(statistic, channels, pool_factor, fill):
    records = random_records(channels=channels)
    if fill != "random":
        records.images[0] = fill
    sensitivity = (
        CentralImageQueries(1, statistic, 1.0, 1.0, pool_factor).mechanism(DatasetInfo(1, channels, 8)).sensitivity
    )
    moved = (summed(records, statistic, pool_factor) - summed(without_first(records), statistic, pool_factor)).norm()
    assert moved <= sensitivity * (1 + 1e-4)
    if fill != "random":  # black and white images attain the bound, so that it is tight
        assert moved >= sensitivity * (1 - 1e-4)


@pytest.mark.parametrize("statistic", ["mean", "mode"])
@pytest.mark.parametrize("others", ["elsewhere", "none"])
def test_the_only_record_of_a_class_moves_no_more_than_any_other(statistic, others):
    """With an empty class or an empty data set, a division or a branch would change more."""
    records = random_records(count=40 if others == "elsewhere" else 1)
    records.labels[1:] = 1
    records.labels[0] = 2
    records.images[0] = torch.randint(0, 2, (1, 8, 8), dtype=torch.uint8) * 255  # black and white: the worst case
    without = without_first(records)
    moved = (summed(records, statistic) - summed(without, statistic)).norm()
    sensitivity = CentralImageQueries(1, statistic, 1.0, 1.0).mechanism(DatasetInfo(1, 1, 8)).sensitivity
    assert moved == pytest.approx(sensitivity, rel=1e-4)


@pytest.mark.parametrize("statistic", ["mean", "mode"])
def test_no_image_among_many_moves_the_sums_by_more_than_the_sensitivity(statistic):
    """Search for the worst record among random images, black and white ones, and values at the borders of bins."""
    base = random_records(count=5)
    expected = summed(base, statistic)
    sensitivity = CentralImageQueries(1, statistic, 1.0, 1.0).mechanism(DatasetInfo(1, 1, 8)).sensitivity
    for attempt in range(100):
        pool = [torch.arange(256), torch.tensor([0, 255]), torch.tensor([31, 32, 127, 128, 223, 224])][attempt % 3]
        image = pool[torch.randint(0, len(pool), (1, 1, 8, 8))].to(torch.uint8)
        label = torch.randint(0, 3, (1,))
        added = ImageDataset(torch.cat([base.images, image]), torch.cat([base.labels, label]), base.class_names)
        assert (summed(added, statistic) - expected).norm() <= sensitivity * (1 + 1e-9)


@pytest.mark.parametrize("statistic", ["mean", "mode"])
def test_a_record_moves_its_own_class_alone(statistic):
    records = random_records()
    moved = (summed(records, statistic) - summed(without_first(records), statistic)).flatten(1).norm(dim=1)
    assert (moved > 0).nonzero()[:, 0].tolist() == [int(records.labels[0])]


def released_noise(monkeypatch, statistic, queries=200, secure_rng=False, size=8):
    """The noise of each query: what it releases if no record is sampled, before an image is made of it."""
    released = []
    for name in ("_means", "_modes"):
        monkeypatch.setattr(central_images, name, lambda sums: released.append(sums) or torch.zeros(3, size**2))
    randomness = MechanismRandomness(secure_rng=secure_rng)
    CentralImageDataset.from_dataset(
        random_records(size=size), queries, statistic, 3.0, 1e-9, ledger=PrivacyLedger(1e-5), randomness=randomness
    )
    return torch.stack(released)


@pytest.mark.parametrize("secure_rng", [False, True])
@pytest.mark.parametrize("statistic", ["mean", "mode"])
def test_noise_has_the_standard_deviation_that_the_ledger_says(monkeypatch, statistic, secure_rng):
    noise = released_noise(monkeypatch, statistic, queries=400, secure_rng=secure_rng, size=32)
    sensitivity = (1024 / 4 + 32 / 4) ** 0.5 if statistic == "mean" else 32.0
    assert noise.shape[1:] == ((3, 1025) if statistic == "mean" else (3, 8, 1024))
    noise /= 3.0 * sensitivity
    assert noise.square().mean().sqrt() == pytest.approx(1, rel=0.004)  # six standard errors of a million numbers
    for label in range(3):
        assert noise[:, label].square().mean().sqrt() == pytest.approx(1, rel=0.007)
    # Each of up to 24,576 coordinates, counts included; the limit fails by chance in less than one of a million tests.
    assert abs(noise.flatten(1).square().mean(dim=0) - 1).max() < 7 * (2 / 400) ** 0.5
    assert (noise**4).mean() == pytest.approx(3, abs=0.06)


@pytest.mark.parametrize("statistic", ["mean", "mode"])
def test_noise_is_independent_between_coordinates_classes_and_queries(monkeypatch, statistic):
    noise = released_noise(monkeypatch, statistic)
    one, other = noise[:, 0].flatten(1), noise[:, 1].flatten(1)
    for pair in ((noise[1:], noise[:-1]), (one, other), (one[:, 1:], one[:, :-1])):
        correlation = torch.corrcoef(torch.stack([part.flatten() for part in pair]))[0, 1]
        assert abs(correlation) < 6 / pair[0].numel() ** 0.5


def test_every_query_adds_noise_to_every_class():
    """Records of one value have a known mean, so that the rest is noise, divided by the count."""
    records = records_of_one_value(128)
    central = CentralImageDataset.from_dataset(
        records, 20, noise_multiplier=5.0, sample_rate=1.0, ledger=PrivacyLedger(1e-5)
    )
    noise = central.images - 128 / 255
    expected = 5.0 * central.mechanism.sensitivity / 1000
    assert noise.view(20, 3, 64).std(dim=(0, 2)) == pytest.approx([expected] * 3, rel=0.15)


def test_queries_are_independent_of_the_seed_and_of_each_other():
    releases = []
    for _ in range(2):
        torch.manual_seed(0)
        releases.append(CentralImageDataset.from_dataset(random_records(), 2, ledger=PrivacyLedger(1e-5)))
    assert not torch.equal(releases[0].images, releases[1].images)
    assert not torch.equal(releases[0].images[:3], releases[0].images[3:])


def test_counts_are_noisy_too():
    """A wrong count changes all pixels of an image together, by more than the mean of the pixels' own noise."""
    records = records_of_one_value(230)
    central = CentralImageDataset.from_dataset(
        records, 60, noise_multiplier=5.0, sample_rate=1.0, ledger=PrivacyLedger(1e-5)
    )
    noise_std = 5.0 * central.mechanism.sensitivity / 1000
    beta = 64**0.25 / 2
    expected = noise_std * (1 / 64 + (230 / 255 - 0.5) ** 2 / beta**2) ** 0.5
    assert central.images.mean(dim=(1, 2, 3)).std() == pytest.approx(expected, rel=0.3)  # 180 images; without: 0.4


def test_modes_are_noisy():
    records = random_records()
    records.images[:] = 128
    central = CentralImageDataset.from_dataset(
        records, 1, "mode", noise_multiplier=50.0, sample_rate=1.0, ledger=PrivacyLedger(1e-5)
    )
    assert len(central.images.unique()) == 8  # every bin wins somewhere


@pytest.mark.parametrize("statistic", ["mean", "mode"])
def test_each_query_samples_afresh_at_the_rate_of_the_ledger(statistic, monkeypatch):
    """Find for each record the queries that sampled it, and compare all pairs of queries."""
    count, queries, rate = 20_000, 7, 0.4
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    records = ImageDataset(images, torch.arange(count) % 3, ["a", "b", "c"])
    sampled = torch.zeros(queries, count)
    original, seen = central_images._poisson_sample, []

    def remember(records, sample_rate, generator):
        taken = original(records, sample_rate, generator)
        sampled[len(seen), taken] = 1
        seen.append(sample_rate)
        return taken

    monkeypatch.setattr(central_images, "_poisson_sample", remember)
    central = CentralImageDataset.from_dataset(
        records, queries, statistic, sample_rate=rate, ledger=PrivacyLedger(1e-5)
    )
    assert seen == [central.mechanism.sample_rate] * queries == [rate] * queries
    assert (sampled.mean(dim=1) - rate).abs().max() < 6 * (rate * (1 - rate) / count) ** 0.5
    assert (torch.corrcoef(sampled) - torch.eye(queries)).abs().max() < 6 / count**0.5


def test_an_empty_class_is_treated_like_any_other():
    """An empty class gets noise as well, so that nobody can tell whether it has records."""
    records = random_records()
    records.labels[:] = 0
    central = CentralImageDataset.from_dataset(records, 4, sample_rate=1.0, ledger=PrivacyLedger(1e-5))
    assert len(central) == 12
    assert torch.isfinite(central.images).all()
    empty = central.images[central.labels == 2]
    assert (empty.flatten(1).std(dim=1) > 0.1).all()
    assert not torch.equal(empty[0], empty[1])


@pytest.mark.parametrize("statistic", ["mean", "mode"])
def test_with_next_to_no_noise_the_release_is_the_statistic(statistic):
    records = random_records(count=300, channels=3)
    records.images[:200, :, :4] = 40
    central = CentralImageDataset.from_dataset(
        records, 1, statistic, noise_multiplier=1e-4, sample_rate=1.0, ledger=PrivacyLedger(1e-5)
    )
    for label in range(3):
        chosen = records.images[records.labels == label].float() / 255
        if statistic == "mean":
            assert torch.allclose(central.images[label], chosen.mean(0), atol=1e-3)
        else:
            assert torch.allclose(central.images[label][:, :4], torch.tensor(1.5 / 8))  # 40/255 is in the second bin


def test_pooled_queries_come_back_at_full_size():
    records = random_records(size=8)
    records.images[:] = 51
    central = CentralImageDataset.from_dataset(
        records, 2, noise_multiplier=1e-4, sample_rate=1.0, ledger=PrivacyLedger(1e-5), pool_factor=4
    )
    assert central.images.shape == (6, 1, 8, 8)
    assert torch.allclose(central.images, torch.tensor(0.2), atol=2e-3)


def test_poisson_sampling_includes_each_record_independently():
    records = random_records(count=2000)
    samples = [central_images._poisson_sample(records, 0.3, entropy_generator()) for _ in range(300)]
    sizes = torch.tensor([float(len(sample)) for sample in samples])
    assert sizes.mean() == pytest.approx(600, abs=6 * (2000 * 0.21 / 300) ** 0.5)
    assert sizes.var() == pytest.approx(2000 * 0.3 * 0.7, rel=0.5)  # a fixed batch size would have none


def test_the_ledger_entry_comes_before_the_release(monkeypatch):
    class Refuses(PrivacyLedger):
        def record(self, mechanism):
            raise RuntimeError("no entry")

    monkeypatch.setattr(central_images, "_poisson_sample", lambda *_: pytest.fail("read before the entry was durable"))
    with pytest.raises(RuntimeError, match="no entry"):
        CentralImageDataset.from_dataset(random_records(), ledger=Refuses(1e-5))


def test_entry_says_what_was_done():
    ledger = PrivacyLedger(1e-5)
    central = CentralImageDataset.from_dataset(random_records(), 4, "mode", 7.0, 0.2, ledger=ledger)
    assert ledger.mechanisms == [central.mechanism] == [Mechanism("central_images_mode", 7.0, 0.2, 4, 8.0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistic": "median"}, '`statistic` is "median"'),
        ({"noise_multiplier": 0.0}, "noise multiplier"),
        ({"sample_rate": 0.0}, "sample rate"),
        ({"images_per_class": 0}, "steps"),
        ({"pool_factor": 3}, "cannot be pooled by 3"),
        ({"mode_bins": 1}, "`mode_bins` is 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_recorded(options, message):
    ledger = PrivacyLedger(1e-5)
    with pytest.raises(InputError, match=message):
        CentralImageDataset.from_dataset(random_records(), **options, ledger=ledger)
    assert ledger.mechanisms == []


def test_queries_that_would_pass_the_target_are_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(central_images, "_poisson_sample", lambda *_: pytest.fail("read beyond the target"))
    ledger = PrivacyLedger(1e-5, target_epsilon=0.1)
    with pytest.raises(InputError, match="5 steps of central_images_mean would pass the target epsilon 0.1"):
        CentralImageDataset.from_dataset(random_records(), sample_rate=1.0, ledger=ledger)
    assert ledger.mechanisms == []


def test_a_seed_for_the_noise_takes_the_privacy_away_and_says_so():
    ledger, records = PrivacyLedger(1e-5), random_records()
    first, second = (
        CentralImageDataset.from_dataset(records, ledger=ledger, randomness=MechanismRandomness(insecure_noise_seed=3))
        for _ in range(2)
    )
    assert torch.equal(first.images, second.images)
    assert ledger.not_private is not None
    assert "insecure_noise_seed" in ledger.not_private


def test_disk_keeps_images_labels_and_the_entry(tmp_path):
    central = CentralImageDataset.from_dataset(random_records(), 2, ledger=PrivacyLedger(1e-5))
    central.save_to_disk(tmp_path / "central")
    loaded = CentralImageDataset.load_from_disk(tmp_path / "central")
    assert torch.equal(loaded.images, central.images)
    assert torch.equal(loaded.labels, central.labels)
    assert (loaded.mechanism, loaded.class_names) == (central.mechanism, central.class_names)
    with pytest.raises(InputError, match="holds no central images"):
        CentralImageDataset.load_from_disk(tmp_path)


def test_is_a_dataset_of_image_and_label():
    central = CentralImageDataset.from_dataset(load_image_dataset(dataset_name="digits"), 2, ledger=PrivacyLedger(1e-5))
    image, label = central[13]
    assert (len(central), image.shape, image.dtype, label) == (20, (1, 8, 8), torch.float32, 3)
    assert 0 <= image.min() <= image.max() <= 1
    batch, labels = next(iter(torch.utils.data.DataLoader(central, batch_size=20)))
    assert batch.shape == (20, 1, 8, 8)
    assert labels.tolist() == [*range(10), *range(10)]
    assert central.to_grid().size == (2 * 64, 10 * 64)


@pytest.mark.parametrize("statistic", ["mean", "mode"])
def test_a_query_has_no_operation_for_each_record(statistic):
    """Records are summed by a few operations on large tensors, so that 60,000 of them take a second."""
    operations = []
    for count in (200, 400):
        with TensorMemory() as memory:
            CentralImageDataset.from_dataset(
                random_records(count), 1, statistic, sample_rate=1.0, ledger=PrivacyLedger(1e-5)
            )
        operations.append(memory.operations)
    assert operations[1] < operations[0] + 100


@pytest.mark.parametrize("sample_rate", [1.0, 0.25])
def test_class_counts_are_those_that_the_mean_queries_release(tmp_path, sample_rate):
    """Without noise they are the numbers of records. They are kept on disk. Mode queries release none."""
    records = records_of_one_value(100)
    records = ImageDataset(records.images[:1800], records.labels[:1800].clamp(max=1), records.class_names)

    def query(noise_multiplier, statistic="mean"):
        ledger = PrivacyLedger(1e-5)
        return CentralImageDataset.from_dataset(records, 9, statistic, noise_multiplier, sample_rate, ledger=ledger)

    exact = query(1e-6)
    assert exact.class_counts == pytest.approx([600, 1200, 0], abs=0.01 if sample_rate == 1 else 120)
    exact.save_to_disk(tmp_path / "central")
    assert CentralImageDataset.load_from_disk(tmp_path / "central").class_counts == exact.class_counts
    assert min(query(50.0).class_counts) >= 0
    assert query(50.0).class_counts != query(50.0).class_counts
    assert query(1.0, "mode").class_counts is None
