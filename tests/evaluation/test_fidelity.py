import prdc
import pytest
import torch
from sklearn.metrics import pairwise_distances
from sklearn.metrics.pairwise import polynomial_kernel
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from diffusers_dp_curriculum import InputError
from diffusers_dp_curriculum.evaluation.fidelity import (
    frechet_distance,
    kernel_distance,
    precision_recall_density_coverage,
)
from diffusers_dp_curriculum.evaluation.nearest import distances_to_nearest


def clouds(real=700, synthetic=640, features=24, dtype=torch.float32, offset=0.0):
    """Two clouds of points, of different sizes, both larger than the number of rows taken at once."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(features, features, generator=generator) / features**0.5
    return (
        (torch.randn(real, features, generator=generator) @ mixing + offset).to(dtype),
        (1.2 * torch.randn(synthetic, features, generator=generator) @ mixing + 0.3 + offset).to(dtype),
    )


class Features(torch.nn.Module):
    num_features = 24

    def forward(self, features):
        return features


def torchmetrics(metric, real, synthetic):
    metric.update(real, real=True)
    metric.update(synthetic, real=False)
    return metric.compute()


def test_frechet_distance_agrees_with_torchmetrics_and_with_its_formula():
    real, synthetic = clouds()
    ours = frechet_distance(real, synthetic)
    assert ours == pytest.approx(float(torchmetrics(FrechetInceptionDistance(Features()), real, synthetic)), rel=1e-4)
    real, synthetic = real.double(), synthetic.double()

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T

    a, b = torch.cov(real.T), torch.cov(synthetic.T)
    gap = (real.mean(dim=0) - synthetic.mean(dim=0)).square().sum()
    formula = gap + torch.trace(a + b - 2 * root(root(a) @ b @ root(a)))
    assert ours == pytest.approx(float(formula), rel=1e-8)


def test_frechet_distance_of_features_far_from_zero_keeps_its_digits():
    real, synthetic = clouds(dtype=torch.float64)
    far = clouds(dtype=torch.float64, offset=1e3)
    assert frechet_distance(*far) == pytest.approx(frechet_distance(real, synthetic), abs=1e-4)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
def test_kernel_distance_agrees_with_torchmetrics():
    real, synthetic = clouds(real=120, synthetic=100)
    torch.manual_seed(3)
    expected, _ = torchmetrics(KernelInceptionDistance(Features(), subset_size=100), real, synthetic)
    assert kernel_distance(real, synthetic, seed=3) == pytest.approx(float(expected), abs=1e-4)


def test_kernel_distance_agrees_with_scikit_learn_where_all_images_are_in_each_subset():
    real, synthetic = clouds(real=300, synthetic=300)

    def mean_of_pairs(a, b, same=False):
        kernel = torch.from_numpy(polynomial_kernel(a, b, degree=3, gamma=1 / 24, coef0=1)).double()
        return (kernel.sum() - kernel.trace()) / (300 * 299) if same else kernel.mean()

    expected = mean_of_pairs(real, real, True) + mean_of_pairs(synthetic, synthetic, True)
    expected -= 2 * mean_of_pairs(real, synthetic)
    assert kernel_distance(real, synthetic) == pytest.approx(float(expected), abs=1e-6)


def test_kernel_distance_depends_on_its_seed_alone():
    real, synthetic = clouds(real=120, synthetic=100)
    state = torch.random.get_rng_state()
    assert kernel_distance(real, synthetic, seed=1) == kernel_distance(real, synthetic, seed=1)
    assert kernel_distance(real, synthetic, seed=1) != kernel_distance(real, synthetic, seed=2)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("nearest_k", [1, 5])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_precision_recall_density_coverage_agree_with_prdc(nearest_k, offset):
    real, synthetic = clouds(offset=offset)
    ours = precision_recall_density_coverage(real, synthetic, nearest_k)
    theirs = prdc.compute_prdc(real.double().numpy(), synthetic.double().numpy(), nearest_k)
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_images_that_are_the_same_are_as_near_as_can_be():
    real, _ = clouds(real=200)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    assert kernel_distance(real, real) < 0, "the pairs of an image with itself are left out of two sums of three"
    scores = precision_recall_density_coverage(real, real)
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1


@pytest.mark.parametrize("k", [1, 4])
def test_nearest_neighbours_agree_with_scikit_learn(k):
    real, synthetic = clouds()
    distances, indices = distances_to_nearest(synthetic, real, k)
    expected = torch.from_numpy(pairwise_distances(synthetic, real)).double().topk(k, largest=False)
    torch.testing.assert_close(distances.double(), expected.values, rtol=1e-4, atol=1e-4)
    assert torch.equal(indices, expected.indices)


def test_a_copy_is_found_at_distance_zero():
    real, synthetic = clouds(offset=30.0)
    synthetic[7] = real[41]
    distances, indices = distances_to_nearest(synthetic, real)
    assert (distances[7, 0], indices[7, 0]) == (0, 41)


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance, precision_recall_density_coverage])
def test_features_that_do_not_fit_together_are_refused(metric):
    real, synthetic = clouds()
    with pytest.raises(InputError, match="equally many columns"):
        metric(real, synthetic[:, :5])
    with pytest.raises(InputError, match="There are 700 real and 1 synthetic images"):
        metric(real, synthetic[:1])
