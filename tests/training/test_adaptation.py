"""A network adapted to other images computes what it computed before where both inputs mean the same."""

import pytest
import torch
from diffusers import UNet2DModel

from diffusers_dp_curriculum.data.dataset_info import DatasetInfo
from diffusers_dp_curriculum.training.adaptation import adapt_network
from helpers import tiny_unet


TIMES = torch.tensor([3, 700])

# The configs of google/ddpm-cifar10-32 and google/ddpm-celebahq-256.
DDPM = {
    "in_channels": 3,
    "out_channels": 3,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "layers_per_block": 2,
    "downsample_padding": 0,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
}
CIFAR10 = DDPM | {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
CELEBAHQ = DDPM | {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
}


def info(channels=1, size=8, class_names=None):
    return DatasetInfo(60, channels, size, class_names)


@torch.no_grad()
def output(unet, images, label=None):
    """What a network computes for images at two noise levels, of a class."""
    torch.manual_seed(0)
    return unet.eval()(images, TIMES, None if label is None else torch.full((len(images),), label)).sample


def network(**options):
    torch.manual_seed(1)
    return tiny_unet(**options)


@pytest.mark.parametrize("options", [{}, {"center_input_sample": True, "time_embedding_type": "fourier"}])
def test_a_network_of_colours_computes_the_same_on_grey_images(options):
    unet, grey = network(channels=3, num_classes=None, **options), torch.randn(2, 1, 8, 8)
    expected = output(unet, grey.repeat(1, 3, 1, 1)).mean(1, keepdim=True)
    torch.testing.assert_close(output(adapt_network(unet, info()), grey), expected)


def test_a_network_of_grey_images_computes_the_same_in_each_channel():
    unet, grey = network(num_classes=None), torch.randn(2, 1, 8, 8)
    expected = output(unet, grey).repeat(1, 3, 1, 1)
    torch.testing.assert_close(output(adapt_network(unet, info(channels=3)), grey.repeat(1, 3, 1, 1)), expected)


def test_every_class_begins_as_what_a_network_without_classes_computes():
    unet, images = network(num_classes=None), torch.randn(2, 1, 8, 8)
    adapted = adapt_network(unet, info(class_names=("healthy", "ill")))
    assert adapted.config.num_class_embeds == 3
    for label in range(3):
        torch.testing.assert_close(output(adapted, images, label), output(unet, images))


def test_no_label_stays_no_label_and_a_class_of_the_same_name_the_same_class():
    unet, images = network(num_classes=3), torch.randn(2, 1, 8, 8)
    adapted = adapt_network(unet, info(class_names=("boat", "cat")), known_classes=["ant", "bee", "cat"])
    for label, before in ((2, 3), (0, 3), (1, 2)):
        torch.testing.assert_close(output(adapted, images, label), output(unet, images, before))
    assert not torch.allclose(output(adapted, images, 0), output(adapted, images, 1))


def test_without_a_null_class_no_label_is_the_mean_of_the_classes():
    unet = network(num_classes=3)
    rows = adapt_network(unet, info(class_names=("a", "b"))).class_embedding.weight
    torch.testing.assert_close(rows, unet.class_embedding.weight.mean(0).expand(3, -1))


def test_images_without_labels_get_what_the_network_computes_for_no_label():
    unet, images = network(num_classes=3), torch.randn(2, 1, 8, 8)
    adapted = adapt_network(unet, info(), known_classes=["a", "b", "c"])
    assert adapted.config.num_class_embeds is None
    torch.testing.assert_close(output(adapted, images), output(unet, images, 3))


def test_the_network_that_was_given_is_left_as_it_is():
    unet = network(num_classes=3, channels=3)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    adapted = adapt_network(unet, info(size=16))
    adapted.conv_norm_out.weight.data.zero_()
    assert (unet.config.sample_size, unet.config.in_channels) == (8, 3)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


@pytest.mark.parametrize("config", [CIFAR10, CELEBAHQ], ids=["cifar10", "celebahq"])
@pytest.mark.parametrize(("channels", "size"), [(1, 64), (3, 32)])
def test_networks_of_ddpm_at_full_size_take_other_images(config, channels, size):
    with torch.device("meta"):
        adapted = adapt_network(UNet2DModel(**config), info(channels, size, ("a", "b")))
        images = torch.empty(2, channels, size, size)
        result = adapted(images, torch.empty(2), torch.empty(2, dtype=torch.int64)).sample
    assert result.shape == images.shape
    assert adapted.config.block_out_channels == config["block_out_channels"]


def test_a_narrow_network_of_ddpm_takes_another_size():
    narrow = {"block_out_channels": (8, 8, 8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    adapted = adapt_network(UNet2DModel(**CIFAR10 | narrow), info(1, 16, ("a", "b")))
    assert output(adapted, torch.randn(2, 1, 16, 16), 1).isfinite().all()
