"""Mechanism 2: the gradient of a record, its contribution to the sum, and the noise of a step."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.mechanisms.dp_sgd import DPSGD, dp_sgd_mechanism
from diffusers_dp_curriculum.mechanisms.randomness import MechanismRandomness
from diffusers_dp_curriculum.privacy.ledger import PrivacyLedger
from helpers.dp_sgd_steps import fixed_draws, make_dp_sgd, parameters, take_step
from helpers.reference_gradients import clipped_sum, flat, naive_gradients
from helpers.tensor_memory import TensorMemory


@pytest.mark.parametrize("mode", ["folded", "loop"])
def test_step_is_mean_over_draws_then_clip_then_sum(monkeypatch, mode):
    """At sample rate 1 with hardly any noise, the step is the sum of the clipped float64 reference gradients."""
    mechanism = make_dp_sgd(noise_multiplier=1e-6, batch_size=60, mode=mode)
    unet = copy.deepcopy(mechanism.model)
    pieces = []
    draw = mechanism.loss.draw_each

    def remember(*inputs):
        pieces.append(draw(*inputs))
        return pieces[-1]

    monkeypatch.setattr(mechanism.loss, "draw_each", remember)
    released = take_step(mechanism)
    assert [len(piece.noisy) for piece in pieces] == [7] * 8 + [4]
    gradients = [naive_gradients(unet, piece) for piece in pieces]
    assert any((flat(of_piece).norm(dim=1) > 0.05).any() for of_piece in gradients)
    expected = sum(clipped_sum(of_piece, 0.05) for of_piece in gradients)
    assert (released - expected).norm() / expected.norm() < 1e-4


def test_physical_batch_size_changes_no_result():
    steps = []
    for physical in (3, 1000):
        mechanism = make_dp_sgd(noise_multiplier=1e-6, batch_size=60, physical=physical)
        mechanism.loss.draw_each = fixed_draws
        steps.append(take_step(mechanism))
    assert (steps[0] - steps[1]).norm() / steps[1].norm() < 1e-4


def released_noise(randomness, steps=30):
    """The noise of each parameter, released by steps with empty batches: `(steps, values)` with deviation 1."""
    mechanism = make_dp_sgd(noise_multiplier=2.0, batch_size=1e-6, max_grad_norm=0.5, randomness=randomness)
    steps = torch.stack([take_step(mechanism) for _ in range(steps)])
    return steps.split([p.numel() for p in mechanism.model.parameters()], dim=1)


@pytest.mark.parametrize("secure_rng", [False, True])
def test_noise_has_the_standard_deviation_that_the_ledger_says(secure_rng):
    """Over 1.4 million numbers the limit of half a percent is 8 standard errors; each parameter is tested as well."""
    noises = released_noise(MechanismRandomness(secure_rng=secure_rng))
    together = torch.cat(noises, dim=1)
    assert together.double().square().mean().sqrt() == pytest.approx(1, rel=0.005)
    assert (together.double() ** 4).mean() == pytest.approx(3, abs=0.06)  # Gaussian
    assert min(noise.shape[1] for noise in noises) == 1
    for noise in noises:  # by chance one of the 145 parameters fails in one of a million tests
        chance = stats.chi2.cdf(float(noise.double().square().sum()), noise.numel())
        assert 3e-9 < chance < 1 - 3e-9


@pytest.mark.parametrize("secure_rng", [False, True])
def test_noise_of_each_step_each_parameter_and_each_value_is_its_own(secure_rng):
    noises = released_noise(MechanismRandomness(secure_rng=secure_rng))
    for number, noise in enumerate(noises):
        assert not correlated(noise[1:], noise[:-1])
        assert not correlated(noise[:, 1:], noise[:, :-1])
        for other in noises[:number]:
            common = min(noise.shape[1], other.shape[1])
            assert not correlated(noise[:, :common], other[:, :common])


def correlated(one, other):
    """Whether two samples are correlated, by Fisher's transformation at six and a half standard errors."""
    if one.numel() < 20:
        return False
    correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1]
    return abs(correlation.atanh()) * (one.numel() - 3) ** 0.5 > 6.5


def test_all_that_a_mechanism_draws_follows_from_whole_generators_of_entropy():
    """A state from 32 bits could be found by trying all of them against the release."""
    mechanism = make_dp_sgd()
    sampler = mechanism.batches.gi_frame.f_locals["self"]
    of_the_draws = torch.Generator()
    of_the_draws.set_state(torch.get_rng_state())
    for generator in (mechanism.optimizer.generator, sampler.generator, of_the_draws):
        words, seeded = (
            state.numpy()[24:].view(np.uint64)[:624]
            for state in (
                generator.get_state(),
                torch.Generator().manual_seed(generator.initial_seed()).get_state(),
            )
        )
        assert (words != seeded).sum() > 600
        assert len(set(words.tolist())) > 600


def test_noise_is_added_once_per_step_however_many_physical_batches():
    for physical in (2, 100):
        mechanism = make_dp_sgd(noise_multiplier=100.0, batch_size=60, max_grad_norm=0.05, physical=physical)
        assert take_step(mechanism).std() == pytest.approx(100 * 0.05, rel=0.05)


def test_sum_is_divided_by_the_expected_batch_size_not_the_true_one():
    """The true batch size is private, so that a record has the same weight in a batch of one and of four."""
    assert make_dp_sgd(batch_size=20).optimizer.expected_batch_size == pytest.approx(20)
    moved = []
    for batch in ([5], [5, 5, 5, 5]):  # four times the same record: four times the step
        mechanism = make_dp_sgd(noise_multiplier=1e-6, batch_size=20)
        mechanism.batches = iter([batch])
        mechanism.loss.draw_each = fixed_draws
        before = parameters(mechanism.model)
        mechanism.step()
        moved.append(before - parameters(mechanism.model))
    assert (moved[1] - 4 * moved[0]).norm() / moved[1].norm() < 1e-3


def test_poisson_sampling_draws_batches_of_varying_size():
    mechanism = make_dp_sgd(batch_size=20, steps=400)
    batches = list(mechanism.batches)
    sizes = torch.tensor([float(len(batch)) for batch in batches])
    assert all(len(set(batch)) == len(batch) for batch in batches)
    assert sizes.mean() == pytest.approx(20, abs=6 * (60 * (1 / 3) * (2 / 3) / 400) ** 0.5)
    assert sizes.var() == pytest.approx(60 * (1 / 3) * (2 / 3), rel=0.45)
    assert sizes[:-1].ne(sizes[1:]).any()


def test_each_record_is_included_at_the_sample_rate_independently_of_the_others():
    mechanism = make_dp_sgd(batch_size=20, steps=3000)
    included = torch.zeros(3000, 60)
    for step, batch in enumerate(mechanism.batches):
        included[step, batch] = 1
    rate = mechanism.mechanism.sample_rate
    assert (included.mean(dim=0) - rate).abs().max() < 5 * (rate * (1 - rate) / 3000) ** 0.5
    correlation = torch.corrcoef(included.T) - torch.eye(60)
    assert correlation.abs().max() < 6 / 3000**0.5  # between records; a fixed batch size gives all of them -1 / 59
    assert correlation.sum() / (60 * 59) == pytest.approx(0, abs=0.003)
    assert abs(torch.corrcoef(torch.stack([included[1:].flatten(), included[:-1].flatten()]))[0, 1]) < 0.015


@pytest.mark.parametrize("pixels", ["huge", "nan", "inf"])
def test_a_record_that_is_not_finite_contributes_nothing(pixels):
    """The other records of the batch still contribute."""
    mechanism = make_dp_sgd()
    target = torch.ones(5, 2, 1, 8, 8)
    target[0] = {"huge": 1e18, "nan": float("nan"), "inf": float("inf")}[pixels]
    mechanism.loss.draw_each = lambda *inputs: replace(fixed_draws(*inputs), target=target)
    mechanism._set_grad_samples(torch.arange(5))
    gradients = torch.cat([p.grad_sample.flatten(1) for p in mechanism.model.parameters()], dim=1)
    assert gradients.isfinite().all()
    assert (gradients[1:].norm(dim=1) > 0).all()
    if pixels != "huge":
        assert (gradients[0] == 0).all()


def test_a_huge_record_is_clipped_to_the_norm():
    mechanism = make_dp_sgd(noise_multiplier=1e-9, max_grad_norm=0.05)
    mechanism.batches = iter([[0]])
    mechanism.loss.draw_each = lambda *inputs: replace(fixed_draws(*inputs), target=torch.full((1, 2, 1, 8, 8), 1e15))
    assert take_step(mechanism).norm() == pytest.approx(0.05, rel=1e-2)


def test_a_step_that_raised_leaves_nothing_behind(monkeypatch):
    """The next step must not release the sums of the failed step a second time."""
    mechanism = make_dp_sgd(noise_multiplier=1e-6, batch_size=60)
    mechanism.loss.draw_each = fixed_draws
    original, calls = mechanism._set_grad_samples, []

    def fails_once(piece):
        calls.append(original(piece))
        if len(calls) == 4:
            raise ZeroDivisionError

    monkeypatch.setattr(mechanism, "_set_grad_samples", fails_once)
    with pytest.raises(ZeroDivisionError):
        mechanism.step()
    released = take_step(mechanism)
    clean = make_dp_sgd(noise_multiplier=1e-6, batch_size=60)
    clean.loss.draw_each = fixed_draws
    assert (released - take_step(clean)).norm() / released.norm() < 1e-3


def test_the_ledger_entry_comes_before_the_step(monkeypatch):
    mechanism = make_dp_sgd()
    mechanism.gradients_of = lambda _: pytest.fail("read before the entry was durable")
    monkeypatch.setattr(mechanism.execution, "_record", lambda _: (_ for _ in ()).throw(RuntimeError("no entry")))
    with pytest.raises(RuntimeError, match="no entry"):
        mechanism.step()


def test_steps_beyond_the_plan_are_refused_unrecorded():
    ledger = PrivacyLedger(1e-5)
    mechanism = make_dp_sgd(steps=2, ledger=ledger)
    for _ in range(2):
        mechanism.step()
    with pytest.raises(InputError, match="All 2 steps have been taken"):
        mechanism.step()
    assert ledger.mechanisms[0].steps == 2


def test_steps_that_would_pass_the_target_are_refused_before_anything_is_read():
    ledger = PrivacyLedger(1e-5, target_epsilon=1.0)
    with pytest.raises(InputError, match="50 steps of dp_sgd would pass the target epsilon 1"):
        make_dp_sgd(ledger=ledger)
    assert ledger.mechanisms == []


def test_a_sample_rate_that_the_sampler_would_exceed_is_refused():
    """The sampler compares numbers of 24 bits, so that a rate of 1e-9 would become 6e-8."""
    mechanism = make_dp_sgd()
    ledger = PrivacyLedger(1e-5)
    with pytest.raises(InputError, match="cannot realise the sample rate 1e-09"):
        DPSGD(
            mechanism.model,
            mechanism.optimizer.original_optimizer,
            mechanism.loss,
            mechanism.records,
            replace(mechanism.mechanism, sample_rate=1e-9),
            ledger,
            noise_multiplicity=1,
            max_physical_batch_size=1,
            gradients_of=mechanism.gradients_of,
        )
    assert ledger.mechanisms == []


def test_a_seed_for_the_noise_takes_the_privacy_away_and_says_so():
    ledgers = [PrivacyLedger(1e-5) for _ in range(2)]
    steps = [
        take_step(make_dp_sgd(ledger=ledger, randomness=MechanismRandomness(insecure_noise_seed=3)))
        for ledger in ledgers
    ]
    assert torch.equal(*steps)
    assert all("insecure_noise_seed" in ledger.not_private for ledger in ledgers)
    private = PrivacyLedger(1e-5)
    make_dp_sgd(ledger=private)
    assert private.not_private is None


def test_each_step_is_recorded():
    ledger = PrivacyLedger(1e-5)
    mechanism = make_dp_sgd(noise_multiplier=3.0, ledger=ledger)
    for _ in range(2):
        mechanism.step()
    assert ledger.mechanisms == [dp_sgd_mechanism(3.0, 20, 60, 2, 0.05)]


@pytest.mark.parametrize("secure_rng", [False, True])
def test_noise_alone_does_not_depend_on_the_seed(secure_rng):
    randomness = MechanismRandomness(secure_rng)
    noises = [take_step(make_dp_sgd(batch_size=1e-6, randomness=randomness)) for _ in range(2)]
    assert abs(torch.corrcoef(torch.stack(noises))[0, 1]) < 0.06


def test_each_step_takes_a_fresh_batch(monkeypatch):
    mechanism = make_dp_sgd(physical=1000)
    taken = []
    monkeypatch.setattr(
        mechanism,
        "_set_grad_samples",
        lambda piece, original=mechanism._set_grad_samples: (taken.append(piece.tolist()), original(piece)),
    )
    for _ in range(3):
        mechanism.step()
    assert taken[0] != taken[1] != taken[2]


def test_nothing_random_depends_on_the_seed():
    torch.manual_seed(0)
    first = make_dp_sgd()
    second = make_dp_sgd()
    assert torch.equal(parameters(first.model), parameters(second.model))
    draws = [torch.rand(4)]
    assert next(first.batches) != next(second.batches)
    assert not torch.allclose(take_step(first), take_step(second))
    make_dp_sgd()
    draws.append(torch.rand(4))
    assert not torch.equal(*draws)  # the noise draws of the loss come from the global generator


def test_memory_does_not_grow_with_the_logical_batch():
    """The tensors of a physical batch are freed before the next one is taken."""
    peaks = []
    for count in (28, 56):
        mechanism = make_dp_sgd(batch_size=count, physical=7)
        mechanism.batches = iter([list(range(count))])
        with TensorMemory() as memory:
            mechanism.step()
        peaks.append(memory.num_bytes)
    assert peaks[1] <= 1.01 * peaks[0]
