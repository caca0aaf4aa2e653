"""Privacy of users: what all records of one user together change, whoever the user is and however many they are."""

import copy
from dataclasses import replace

import pytest
import torch

from diffusers_dp_curriculum import (
    CentralImageDataset,
    FrequencyFeatures,
    ImageDataset,
    MechanismRandomness,
    PrivacyLedger,
)
from diffusers_dp_curriculum.data.dataset_info import DatasetInfo
from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.mechanisms import central_images, class_features
from diffusers_dp_curriculum.mechanisms.central_images import CentralImageQueries
from diffusers_dp_curriculum.mechanisms.class_features import COUNT_WEIGHT
from diffusers_dp_curriculum.mechanisms.frequency_features import FrequencyFeatureQuery
from diffusers_dp_curriculum.mechanisms.randomness import entropy_generator
from helpers import random_records, tiny_records, uneven_users, with_users
from helpers.dp_sgd_steps import fixed_draws, make_dp_sgd, parameters, take_step
from helpers.reference_gradients import clipped_sum, naive_gradients


CLASSES = ["0", "1", "2"]
QUERIES = ["mean", "mode", "frequency"]


def sensitivity(query):
    if query == "frequency":
        return FrequencyFeatureQuery(60).mechanism(DatasetInfo(1, 1, 8)).sensitivity
    return CentralImageQueries(1, query, 1.0, 1.0).mechanism(DatasetInfo(1, 1, 8)).sensitivity


def summed(records, query):
    """The sums of a query of everybody, before the noise."""
    if query == "frequency":
        return class_features._feature_sums(records, FrequencyFeatureQuery(60).features_of((1, 8, 8)), 60)
    if query == "mean":
        return central_images._mean_sums(records, 1.0, 1, torch.Generator())
    return central_images._mode_votes(records, 1.0, 1, 8, torch.Generator())


def in_random_order(images, labels, users):
    order = torch.randperm(len(images))
    return ImageDataset(images[order], labels[order], CLASSES, users=users[order])


def with_one_more(images, labels):
    """Some users, and the same ones with a user who has these records; the order of the records is random."""
    others = random_records(count=30)
    users = torch.arange(30) % 7
    more = in_random_order(
        torch.cat([others.images, images]),
        torch.cat([others.labels, labels]),
        torch.cat([users, torch.full((len(images),), 7)]),
    )
    return with_users(others, users), more


def white(count):
    return torch.full((count, 1, 8, 8), 255, dtype=torch.uint8)


USERS = {
    "one record": lambda: (white(1), torch.tensor([1])),
    "a thousand copies": lambda: (white(1000), torch.ones(1000, dtype=torch.int64)),
    "a thousand black and white images": lambda: (
        255 * torch.randint(0, 2, (1, 1, 8, 8), dtype=torch.uint8).expand(1000, -1, -1, -1),
        torch.zeros(1000, dtype=torch.int64),
    ),
    "one record in each class": lambda: (white(3), torch.arange(3)),
    "records like any other": lambda: (
        torch.randint(0, 256, (11, 1, 8, 8), dtype=torch.uint8),
        torch.randint(0, 3, (11,)),
    ),
}


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("user", USERS)
def test_all_records_of_a_user_move_the_sums_by_at_most_the_sensitivity(query, user):
    without, more = with_one_more(*USERS[user]())
    moved = (summed(more, query) - summed(without, query)).norm()
    assert moved <= sensitivity(query) * (1 + 1e-12)
    if user == "one record" or ("thousand" in user and query != "frequency"):  # attain the bound, so that it is tight
        assert moved >= sensitivity(query) * (1 - 1e-6)


@pytest.mark.parametrize("query", QUERIES)
def test_no_user_found_by_searching_moves_the_sums_by_more(query):
    for attempt in range(60):
        count = int(torch.randint(1, 8, (1,)))
        images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)
        if attempt % 3:
            images = 255 * (images > 127)
        without, more = with_one_more(images.to(torch.uint8), torch.randint(0, 3, (count,)))
        assert (summed(more, query) - summed(without, query)).norm() <= sensitivity(query) * (1 + 1e-12)


@pytest.mark.parametrize("query", QUERIES)
def test_a_user_adds_the_mean_of_what_its_records_add(query):
    records = random_records(count=12)
    users = torch.tensor([0, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3, 3])
    sizes = torch.bincount(users)
    alone = [ImageDataset(records.images[i : i + 1], records.labels[i : i + 1], CLASSES) for i in range(12)]
    expected = sum(summed(record, query) / sizes[user] for record, user in zip(alone, users, strict=True))
    assert torch.allclose(summed(with_users(records, users), query), expected, atol=1e-4)


@pytest.mark.parametrize("query", QUERIES)
def test_with_one_record_a_user_the_sums_are_those_of_records(query):
    records = random_records(count=50)
    assert torch.equal(summed(with_users(records, torch.randperm(50)), query), summed(records, query))


@pytest.mark.parametrize("query", QUERIES)
def test_sums_do_not_depend_on_the_pieces_in_which_records_are_read(query, monkeypatch):
    _, more = with_one_more(*USERS["records like any other"]())
    expected = summed(more, query)
    for values in (1, 3 * 64, 600, 5000):
        for module in (central_images, class_features):
            monkeypatch.setattr(module, "VALUES_AT_ONCE", values)
        assert torch.equal(summed(more, query), expected)


def test_counts_are_those_of_users_divided_among_their_classes():
    records = with_users(ImageDataset(white(7), torch.tensor([0, 0, 0, 1, 2, 2, 2]), CLASSES), [0, 0, 1, 1, 2, 2, 3])
    ledger = PrivacyLedger(1e-5, unit="user")
    central = CentralImageDataset.from_dataset(records, 1, "mean", 1e-7, 1.0, ledger=ledger)
    features = FrequencyFeatures.from_dataset(records, 60, 1e-7, ledger=ledger)
    assert central.class_counts == pytest.approx([1.5, 0.5, 2.0], abs=1e-4)
    assert features.counts.tolist() == pytest.approx([1.5, 0.5, 2.0], abs=1e-4)
    assert summed(records, "frequency")[:, -1].tolist() == [1.5 * COUNT_WEIGHT, 0.5 * COUNT_WEIGHT, 2 * COUNT_WEIGHT]


def test_a_query_samples_users_with_all_their_records():
    records = with_users(random_records(count=900), torch.arange(900) % 300)
    samples = [central_images._poisson_sample(records, 0.3, entropy_generator()) for _ in range(200)]
    assert all(sample.max() < 300 for sample in samples)
    rate = sum(len(sample) for sample in samples) / (200 * 300)
    assert rate == pytest.approx(0.3, abs=6 * (0.21 / (200 * 300)) ** 0.5)


def step_of(mechanism):
    """One step in which everybody takes part."""
    mechanism.batches = iter([list(range(len(mechanism.records.units)))])
    return take_step(mechanism)


@pytest.mark.parametrize("mode", ["folded", "loop"])
def test_a_user_is_the_mean_over_draws_of_its_records_clipped_once(mode, monkeypatch):
    records = uneven_users()
    mechanism = make_dp_sgd(noise_multiplier=1e-6, batch_size=6, mode=mode, records=records)
    unet, pieces, chosen = copy.deepcopy(mechanism.model), [], []
    draw_each, choose = mechanism.loss.draw_each, type(records.units).draw
    monkeypatch.setattr(mechanism.loss, "draw_each", lambda *inputs: pieces.append(draw_each(*inputs)) or pieces[-1])
    monkeypatch.setattr(
        type(records.units), "draw", lambda *inputs: chosen.append((inputs[1], choose(*inputs))) or chosen[-1][1]
    )
    released = step_of(mechanism)
    expected = sum(clipped_sum(naive_gradients(unet, piece), 0.05) for piece in pieces)
    assert (released - expected).norm() / expected.norm() < 1e-4
    users = torch.cat([users for users, _ in chosen])
    assert users.tolist() == list(range(12))  # each once, in one physical batch
    for of_users, of_records in chosen:
        assert records.users[of_records].equal(of_users[:, None].expand(-1, 2))
        several = records.units.sizes[of_users] > 1
        assert (of_records[several, 0] != of_records[several, 1]).all()


@pytest.mark.parametrize("user", ["a thousand copies", "one record in each class"])
def test_one_user_changes_a_step_by_at_most_the_clipping_norm(user):
    without, more = with_one_more(*USERS[user]())
    released = []
    for records in (without, more):
        mechanism = make_dp_sgd(noise_multiplier=1e-9, batch_size=7, records=records)
        mechanism.loss.draw_each = lambda images, labels: replace(
            fixed_draws(torch.ones_like(images), torch.zeros_like(labels)), target=torch.full_like(images, 1e3)
        )
        released.append(step_of(mechanism))
    assert (released[1] - released[0]).norm() == pytest.approx(0.05, rel=1e-2)


def test_users_take_part_at_the_sample_rate_however_many_records_they_have():
    mechanism = make_dp_sgd(batch_size=3, steps=3000, records=uneven_users())
    taken = torch.zeros(12)
    for batch in mechanism.batches:
        assert len(set(batch)) == len(batch)
        taken[batch] += 1
    assert mechanism.mechanism.sample_rate == pytest.approx(0.25, abs=1e-6)
    assert (taken / 3000 - 0.25).abs().max() < 6 * (0.25 * 0.75 / 3000) ** 0.5
    assert mechanism.optimizer.expected_batch_size == pytest.approx(3, abs=1e-5)


def test_a_step_takes_the_users_of_the_sample():
    """Whoever is in the sample takes part once, and nobody else does."""
    mechanism, pieces = make_dp_sgd(batch_size=6, records=uneven_users()), []
    of_batches, original = [], mechanism._set_grad_samples
    batches = mechanism.batches
    mechanism.batches = (of_batches.append(batch) or batch for batch in batches)
    mechanism._set_grad_samples = lambda piece: pieces.append(piece) or original(piece)
    for _ in range(3):
        pieces.clear()
        mechanism.step()
        assert torch.cat(pieces).tolist() == of_batches[-1]


def test_with_one_record_a_user_a_step_is_that_of_records():
    records = tiny_records()
    steps = []
    for of in (records, with_users(records, torch.arange(60))):
        mechanism = make_dp_sgd(records=of, randomness=MechanismRandomness(insecure_noise_seed=3))
        mechanism.step()
        steps.append(parameters(mechanism.model))
    assert torch.equal(*steps)


@pytest.mark.parametrize("unit", ["record", "user"])
def test_a_ledger_of_another_unit_is_refused_before_anything_is_recorded(unit):
    records = tiny_records() if unit == "user" else uneven_users()
    ledger = PrivacyLedger(1e-5, unit=unit)
    for begin in (
        lambda: CentralImageDataset.from_dataset(records, ledger=ledger),
        lambda: FrequencyFeatures.from_dataset(records, 60, ledger=ledger),
        lambda: make_dp_sgd(batch_size=6, records=records, ledger=ledger),
    ):
        with pytest.raises(InputError, match=f"and the ledger counts by {unit}s: make it by PrivacyLedger"):
            begin()
    assert ledger.mechanisms == []
