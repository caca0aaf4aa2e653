"""The warm-up: the network learns the central images, has the averaged weights at the end, and images vary."""

import pytest
import torch

from diffusers_dp_curriculum import DPCurriculumConfig
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.mechanisms.releases import ReleasedImages
from diffusers_dp_curriculum.training.stages import warm_up_stages
from diffusers_dp_curriculum.training.warm_up import make_augmentation, start_warm_up, warm_up
from helpers import tiny_records, tiny_scheduler, tiny_unet


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["affine", "randaugment"])
def test_variations_are_images_and_many(name, channels):
    vary = make_augmentation(name, channels)
    images = torch.rand(4, channels, 16, 16)
    distances = []
    for seed in range(60):  # enough for every operation to be drawn
        torch.manual_seed(seed)
        varied = vary(images)
        assert varied.shape == images.shape
        assert 0 <= varied.min() <= varied.max() <= 1
        distances.append((varied - images).abs().mean().item())
    assert len({round(distance, 6) for distance in distances}) > 30
    assert 0.005 < sum(distances) / 60 < 0.3  # varied, and still similar


def test_none_is_none():
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(make_augmentation("none", 1)(images), images)


def warmed_up(**options):
    """The training state after a warm-up on three images, and the loss of each step."""
    config = DPCurriculumConfig(central_augmentation="none", central_batch_size=16, frequency_features=0, **options)
    records = tiny_records(3)
    images = ReleasedImages(records.images.float() / 255, records.labels)
    (stage,) = warm_up_stages(config)
    torch.manual_seed(0)
    state, errors = start_warm_up(tiny_unet(), stage, config), []
    warm_up(state, DenoisingLoss(tiny_scheduler(), null_label=3), images, stage, config, after_step=errors.append)
    return state, torch.stack(errors)


def test_the_network_learns_the_central_images():
    _, errors = warmed_up(central_train_steps=80, central_learning_rate=5e-3)
    assert errors[-20:].mean() < 0.8 * errors[:20].mean()


def test_the_average_of_the_weights_is_what_stays():
    state, _ = warmed_up(central_train_steps=5)
    raw, _ = warmed_up(central_train_steps=5, use_ema=False)
    parameters = list(state.unet.parameters())
    assert all(torch.equal(*pair) for pair in zip(parameters, state.ema.shadow_params, strict=True))
    assert not torch.equal(parameters[0], next(raw.unet.parameters()))
