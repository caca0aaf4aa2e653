"""How central images are varied while the network warms up on them."""

import pytest
import torch

from diffusers_dp_curriculum.warm_up import make_augmentation


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["affine", "randaugment"])
def test_variations_are_images_and_many(name, channels):
    vary = make_augmentation(name, channels)
    images = torch.rand(4, channels, 16, 16)
    distances = []
    for seed in range(60):  # enough for every operation to have its turn
        torch.manual_seed(seed)
        varied = vary(images)
        assert varied.shape == images.shape
        assert 0 <= varied.min() <= varied.max() <= 1
        distances.append((varied - images).abs().mean().item())
    assert len({round(distance, 6) for distance in distances}) > 30
    assert 0.005 < sum(distances) / 60 < 0.3  # varied, and the same images still


def test_none_is_none():
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(make_augmentation("none", 1)(images), images)
