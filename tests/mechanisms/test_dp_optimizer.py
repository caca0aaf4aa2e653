"""What would be inexact in Opacus' optimizer: norms, sums, smaller types, and the tails of the noise."""

import pytest
import torch
from opacus.optimizers import DPOptimizer

from diffusers_dp_curriculum.mechanisms.dp_optimizer import NORM_BLOCK, ExactDPOptimizer, norm_bounds
from diffusers_dp_curriculum.mechanisms.randomness import MechanismRandomness


def optimizer_of(*parameters, max_grad_norm=1.0, noise_multiplier=0.0, normal=None):
    return ExactDPOptimizer(
        torch.optim.SGD(parameters, lr=1.0),
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=1,
        normal=normal or (lambda shape, generator: torch.zeros(shape, dtype=torch.float64)),
    )


def clipped_sum(gradient, max_grad_norm=1.0):
    parameter = torch.nn.Parameter(torch.zeros(gradient.shape[1:]))
    parameter.grad_sample = gradient.clone()
    optimizer = optimizer_of(parameter, max_grad_norm=max_grad_norm)
    optimizer.clip_and_accumulate()
    return parameter.summed_grad


@pytest.mark.parametrize("values", [1_000, 9_437_184])
def test_a_constant_gradient_is_clipped_to_the_norm_however_many_values_it_has(values):
    norm = clipped_sum(torch.full((1, values), 0.1)).norm()
    assert 1 - 4e-5 < norm <= 1 + 1e-12


def test_opacus_alone_would_let_it_keep_more():
    """The reason for our own clipping: if this test fails, that of Opacus is exact enough."""
    parameter = torch.nn.Parameter(torch.zeros(9_437_184))
    parameter.grad_sample = torch.full((1, 9_437_184), 0.1)
    optimizer = DPOptimizer(
        torch.optim.SGD([parameter], lr=1.0), noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=1
    )
    optimizer.clip_and_accumulate()
    assert parameter.summed_grad.double().norm() > 1.002


@pytest.mark.parametrize("scale", [0.0, 1e-30, 0.5, 1e18, 3e38])
def test_no_gradient_keeps_more_than_the_norm_and_small_ones_stay_as_they_are(scale):
    gradient = torch.full((1, 50), scale)
    clipped = clipped_sum(gradient, max_grad_norm=4.0)
    assert clipped.isfinite().all()
    assert clipped.norm() <= 4.0 * (1 + 1e-12)
    if scale < 0.56:
        assert torch.equal(clipped.float(), gradient[0])


def test_a_gradient_whose_factor_is_no_longer_a_normal_number_keeps_no_more_either():
    signs = torch.tensor([1.0, -1.0]).repeat(500_000)
    assert clipped_sum(1e36 * signs[None], max_grad_norm=1e-3).norm() <= 1e-3 * (1 + 1e-12)


def test_the_norm_is_over_all_parameters_and_each_record_is_clipped_alone():
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    parameters[0].grad_sample = torch.tensor([[3.0, 0, 0], [0, 0.3, 0]])
    parameters[1].grad_sample = torch.tensor([[[4.0, 0], [0, 0]], [[0, 0], [0.4, 0]]])
    optimizer_of(*parameters).clip_and_accumulate()
    expected = torch.tensor([0.6, 0.3, 0]).double(), torch.tensor([[0.8, 0], [0.4, 0]]).double()
    for parameter, sum_of_records in zip(parameters, expected, strict=True):
        assert torch.allclose(parameter.summed_grad, sum_of_records, rtol=5e-5)


def test_clipping_does_not_follow_autocast():
    gradient = torch.randn(64, 1000)
    with torch.autocast("cpu", torch.bfloat16):
        summed = clipped_sum(gradient)
    expected = (gradient / gradient.double().norm(dim=1, keepdim=True)).sum(dim=0)
    assert (summed - expected).norm() / expected.norm() < 4e-5


def test_noise_is_added_in_double_precision_times_multiplier_and_norm():
    given = torch.randn(2, 3, dtype=torch.float64)
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    parameter.grad_sample = torch.zeros(0, 2, 3)
    optimizer = optimizer_of(parameter, max_grad_norm=0.5, noise_multiplier=3.0, normal=lambda *_: given)
    optimizer.clip_and_accumulate()
    optimizer.add_noise()
    assert torch.equal(parameter.grad, (1.5 * given).float())


@pytest.mark.parametrize("secure_rng", [False, True])
def test_normal_numbers_come_from_53_bits(secure_rng):
    """Numbers from 24 bits end at 5.8 standard deviations, and a release beyond them would reveal a record."""
    randomness = MechanismRandomness(secure_rng=secure_rng)
    normal = randomness.normal((10_000,), randomness.generator())
    assert normal.dtype == torch.float64
    assert (normal != normal.float().double()).double().mean() > 0.99


def hard_to_add_up(kind, values=300_000):
    """Gradients whose float32 norm is too small, since each value is small compared with the sum before it."""
    generator = torch.Generator().manual_seed(0)
    if kind == "constant":
        return torch.full((2, values), 0.1)
    if kind == "one large":
        return torch.full((2, values), 1e-4).index_fill_(1, torch.tensor([0]), 1.0)
    if kind == "large first":
        return torch.linspace(1, 1e-4, values).expand(2, -1).clone()
    if kind == "every block":  # a block's squares but the first are half a unit in the last place of their sum
        return torch.full((2, values), 2.0**-12.5).index_fill_(1, torch.arange(0, values, NORM_BLOCK), 1.0)
    if kind == "tiny":
        return torch.full((2, values), 3e-23)
    return torch.randn(2, values, generator=generator).exp()


@pytest.mark.parametrize("kind", ["constant", "one large", "large first", "every block", "tiny", "random"])
@pytest.mark.parametrize("threads", [1, 2])
def test_norms_are_never_too_small_and_hardly_too_large(kind, threads):
    gradient = hard_to_add_up(kind)
    parts = [gradient[:, :7], gradient[:, 7:200_000].view(2, -1, 1), gradient[:, 200_000:]]
    torch.set_num_threads(threads)
    bounds = norm_bounds(parts)
    torch.set_num_threads(1)
    exact = gradient.double().norm(dim=1)
    assert (bounds >= exact * (1 + 7e-6)).all()
    assert (bounds <= exact * (1 + 2.5e-5) + 1e-16).all()


def unlucky_gradients(with_record):
    """Gradients of norm 1 at most, in whose float32 sum one record counts twice.

    8,191 large gradients bring each of 64 sums to 1023.875. There float32 numbers are 2^-14 apart, and a small gradient
    of 1.2 such steps is rounded to one. The record brings the sums to 1024, where numbers are twice as far apart, and
    the same small gradient is rounded to two steps. Over 2,000 small gradients the difference grows as large as the
    record.
    """
    large, record, small = (
        torch.full((8191, 64), 0.125),
        torch.full((1, 64), 0.125),
        torch.full((2000, 64), 1.2 / 2**14),
    )
    return torch.cat([large, record, small] if with_record else [large, small])


@pytest.mark.parametrize("physical", [1, 64, 16_384])
def test_in_a_sum_of_many_records_one_counts_no_more_than_the_norm(physical):
    def summed(gradients):
        parameter = torch.nn.Parameter(torch.zeros(64))
        optimizer = optimizer_of(parameter, max_grad_norm=1.001)
        for piece in gradients.split(physical):
            parameter.grad_sample = piece.clone()
            optimizer.clip_and_accumulate()
        return parameter.summed_grad

    moved = (summed(unlucky_gradients(True)) - summed(unlucky_gradients(False))).norm()
    assert moved == pytest.approx(1, abs=1e-9)


def test_in_single_precision_it_would_count_twice():
    """The reason for summing in float64: if this test fails, the gradients above test nothing."""
    sums = []
    for with_record in (True, False):
        total = torch.zeros(64)
        for gradient in unlucky_gradients(with_record):
            total += gradient
        sums.append(total)
    assert (sums[0] - sums[1]).norm() > 1.9


def test_the_physical_batch_size_changes_no_result():
    gradients = torch.randn(300, 50) * torch.logspace(-6, 6, 300)[:, None]
    sums = []
    for physical in (1, 7, 300):
        parameter = torch.nn.Parameter(torch.zeros(50))
        optimizer = optimizer_of(parameter)
        for piece in gradients.split(physical):
            parameter.grad_sample = piece.clone()
            optimizer.clip_and_accumulate()
        sums.append(parameter.summed_grad)
    for other in sums[1:]:
        assert (other - sums[0]).norm() < 1e-12


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_parameters_of_any_shape_take_a_noisy_step(shape):
    parameter = torch.nn.Parameter(torch.zeros(shape))
    parameter.grad_sample = torch.ones(3, *shape)
    optimizer = optimizer_of(parameter, max_grad_norm=0.5)
    optimizer.pre_step()
    assert parameter.grad.shape == shape
    assert torch.allclose(parameter.grad, torch.full(shape, 1.5), rtol=5e-5)
