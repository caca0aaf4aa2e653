"""Where Opacus' optimizer would be inexact in single precision: norms of many values, reduced types, tails of noise."""

import pytest
import torch
from opacus.optimizers import DPOptimizer

from diffusers_dp_curriculum.dp_optimizer import ExactDPOptimizer
from diffusers_dp_curriculum.randomness import MechanismRandomness


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
    norm = clipped_sum(torch.full((1, values), 0.1)).double().norm()
    assert norm == pytest.approx(1.0, rel=2e-6)


def test_opacus_alone_would_let_it_keep_more():
    """The reason for clipping ourselves; when this fails, its own would do."""
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
    clipped = clipped_sum(gradient, max_grad_norm=4.0).double()
    assert clipped.isfinite().all()
    assert clipped.norm() <= 4.0 * (1 + 1e-6)
    if scale < 0.56:
        assert torch.equal(clipped.float(), gradient[0])


def test_a_gradient_whose_factor_is_no_longer_a_normal_number_keeps_no_more_either():
    signs = torch.tensor([1.0, -1.0]).repeat(500_000)
    assert clipped_sum(1e36 * signs[None], max_grad_norm=1e-3).double().norm() <= 1e-3 * (1 + 1e-6)


def test_the_norm_is_over_all_parameters_and_each_record_is_clipped_alone():
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    parameters[0].grad_sample = torch.tensor([[3.0, 0, 0], [0, 0.3, 0]])
    parameters[1].grad_sample = torch.tensor([[[4.0, 0], [0, 0]], [[0, 0], [0.4, 0]]])
    optimizer_of(*parameters).clip_and_accumulate()
    assert torch.allclose(parameters[0].summed_grad, torch.tensor([0.6, 0.3, 0]))
    assert torch.allclose(parameters[1].summed_grad, torch.tensor([[0.8, 0], [0.4, 0]]))


def test_clipping_stays_in_float32_under_autocast():
    gradient = torch.randn(64, 1000)
    with torch.autocast("cpu", torch.bfloat16):
        summed = clipped_sum(gradient)
    expected = (gradient / gradient.double().norm(dim=1, keepdim=True)).sum(dim=0)
    assert summed.dtype == torch.float32
    assert (summed - expected).norm() / expected.norm() < 1e-6


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
    """Those of 24 bits end at 5.8 standard deviations, which a release beyond would give away."""
    randomness = MechanismRandomness(secure_rng=secure_rng)
    normal = randomness.normal((10_000,), randomness.generator())
    assert normal.dtype == torch.float64
    assert (normal != normal.float().double()).double().mean() > 0.99
