"""Measures how far synthetic images are from real ones, as distributions of feature vectors.

The functions take the results of [`features.extract_features`], or any two matrices of feature vectors.
"""

import warnings

import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ..errors import InputError
from .nearest import ROWS_AT_ONCE, distances_to_nearest


KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
NEAREST_K = 5


class _Identity(torch.nn.Module):
    """A feature extractor for torchmetrics that returns its input, for features that were extracted before."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def frechet_distance(real: torch.Tensor, synthetic: torch.Tensor) -> float:
    """Compute the Frechet distance of two normal distributions with the means and covariances of the features.

    With Inception features this is FID ([Heusel et al. 2017](https://arxiv.org/abs/1706.08500)). It is biased
    upwards, and more so for fewer images, so compare only distances from equal numbers of images.

    Args:
        real (`torch.Tensor`): Features of shape `(N, D)`.
        synthetic (`torch.Tensor`): Features of shape `(M, D)`.

    Raises:
        InputError: If the numbers of features differ, or there are fewer than two images on either side.
    """
    real, synthetic = _check(real, synthetic, at_least=2)
    metric = FrechetInceptionDistance(feature=_Identity(real.shape[1])).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(synthetic, real=False)
    return float(metric.compute())


def kernel_distance(real: torch.Tensor, synthetic: torch.Tensor, seed: int = 0) -> float:
    """Compute the squared maximum mean discrepancy of the features, with the cubic kernel `(x.y / D + 1)^3`.

    With Inception features this is KID ([Binkowski et al. 2018](https://arxiv.org/abs/1801.01401)). It is
    the mean over 100 pairs of random subsets of 1,000 images (or all, if there are fewer). It is unbiased, so it can be
    slightly negative.

    Args:
        real (`torch.Tensor`): Features of shape `(N, D)`.
        synthetic (`torch.Tensor`): Features of shape `(M, D)`.
        seed (`int`, *optional*, defaults to 0): Chooses the subsets.

    Raises:
        InputError: If the numbers of features differ, or there are fewer than two images on either side.
    """
    real, synthetic = _check(real, synthetic, at_least=2)
    subset_size = min(KID_SUBSET_SIZE, len(real), len(synthetic))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save", UserWarning)
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(_Identity(real.shape[1]), subsets=KID_SUBSETS, subset_size=subset_size)
        metric.set_dtype(torch.float64)
        metric.update(real, real=True)
        metric.update(synthetic, real=False)
        return float(metric.compute()[0])


def precision_recall_density_coverage(
    real: torch.Tensor, synthetic: torch.Tensor, nearest_k: int = NEAREST_K
) -> dict[str, float]:
    """Measure whether synthetic images look real (precision, density) and cover the real ones (recall, coverage).

    The ball of an image reaches to its `nearest_k`-th nearest neighbour of the same kind, real or synthetic. Precision
    is the share of synthetic images in the ball of any real image, recall the share of real images in the ball of any
    synthetic image ([Kynkaanniemi et al. 2019](https://arxiv.org/abs/1904.06991)). Density is the mean number of real
    balls in which a synthetic image lies, divided by `nearest_k`; it may exceed 1. Coverage is the share of real images
    whose ball contains a synthetic image ([Naeem et al. 2020](https://arxiv.org/abs/2002.09797)).

    Args:
        real (`torch.Tensor`): Features of shape `(N, D)`.
        synthetic (`torch.Tensor`): Features of shape `(M, D)`.
        nearest_k (`int`, *optional*, defaults to 5): The neighbour to which a ball reaches.

    Returns:
        `dict[str, float]`: `"precision"`, `"recall"`, `"density"` and `"coverage"`.

    Raises:
        InputError: If the numbers of features differ, or there are at most `nearest_k` images on either side.
    """
    real, synthetic = _check(real, synthetic, at_least=nearest_k + 1)
    # One more, because the nearest image is the image itself.
    real_radii = distances_to_nearest(real, real, nearest_k + 1)[0][:, -1]
    synthetic_radii = distances_to_nearest(synthetic, synthetic, nearest_k + 1)[0][:, -1]
    in_real_balls = torch.zeros(len(synthetic), dtype=torch.int64)
    recalled, covered = torch.zeros(len(real), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    for rows in torch.arange(len(real)).split(ROWS_AT_ONCE):
        distances = torch.cdist(real[rows], synthetic)
        in_ball = distances < real_radii[rows, None]
        in_real_balls += in_ball.sum(dim=0)
        covered[rows] = in_ball.any(dim=1)
        recalled[rows] = (distances < synthetic_radii).any(dim=1)
    return {
        "precision": float((in_real_balls > 0).double().mean()),
        "recall": float(recalled.double().mean()),
        "density": float(in_real_balls.double().mean() / nearest_k),
        "coverage": float(covered.double().mean()),
    }


def _check(real: torch.Tensor, synthetic: torch.Tensor, at_least: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Check shapes, and convert to float64 on the CPU: the distances are small differences of large numbers."""
    real, synthetic = (torch.as_tensor(features).double().cpu() for features in (real, synthetic))
    if real.ndim != 2 or synthetic.ndim != 2 or real.shape[1] != synthetic.shape[1]:
        raise InputError(
            f"The features have the shapes {tuple(real.shape)} and {tuple(synthetic.shape)}: pass two matrices with "
            "one row per image and equally many columns."
        )
    if min(len(real), len(synthetic)) < at_least:
        raise InputError(
            f"There are {len(real)} real and {len(synthetic)} synthetic images: pass at least {at_least} of each."
        )
    return real, synthetic
