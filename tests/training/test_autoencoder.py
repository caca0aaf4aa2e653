"""Finding, refusing, loading and adapting a public autoencoder."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, LDMPipeline

from diffusers_dp_curriculum import DatasetInfo, InputError, latent_info
from diffusers_dp_curriculum.training.autoencoder import find_autoencoder
from helpers import smallest_unet
from helpers.autoencoders import AUTOENCODERS, tiny_kl, tiny_vq


def info(resolution=16, channels=3):
    return DatasetInfo(60, channels, resolution, ("ant", "bee"))


def load(path, model, channels=3, resolution=16):
    model.save_pretrained(path)
    return find_autoencoder(str(path)).load(info(resolution, channels))


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_a_network_is_built_for_the_latents(tmp_path, kind):
    AUTOENCODERS[kind]().save_pretrained(tmp_path)
    latents = latent_info(str(tmp_path), info(resolution=24))
    assert latents.image_shape == ({"VQModel": 3}.get(kind, 4), 6, 6)
    assert (latents.num_records, latents.class_names) == (60, ("ant", "bee"))


def test_the_channels_of_vectors_are_those_of_the_latents(tmp_path):
    tiny_vq(vq_embed_dim=2).save_pretrained(tmp_path)
    assert latent_info(str(tmp_path), info()).image_shape == (2, 4, 4)


@torch.no_grad()
def test_latents_are_modes_scaled_and_shifted_and_never_random(tmp_path):
    model = tiny_kl(scaling_factor=0.25, shift_factor=0.5)
    autoencoder = load(tmp_path, model)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    mode = model.encode(images).latent_dist.mean
    torch.testing.assert_close(autoencoder.encode(images), (mode - 0.5) * 0.25)
    assert torch.equal(autoencoder.encode(images), autoencoder.encode(images))
    assert not autoencoder.model.training
    assert not any(p.requires_grad for p in autoencoder.model.parameters())


@pytest.mark.parametrize("kind", AUTOENCODERS)
@torch.no_grad()
def test_a_grey_image_is_encoded_as_in_colour_and_decoded_to_the_mean_of_its_channels(tmp_path, kind):
    in_colour, grey = load(tmp_path, AUTOENCODERS[kind]()), find_autoencoder(str(tmp_path)).load(info(channels=1))
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    latents = grey.encode(images)
    torch.testing.assert_close(latents, in_colour.encode(images.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-4)
    decoded = in_colour.model.decode(latents).sample.mean(1, keepdim=True)
    torch.testing.assert_close(grey.model.decode(latents).sample, decoded, rtol=1e-4, atol=1e-4)
    assert str(tmp_path) not in str(dict(grey.model.config))
    grey.model.save_pretrained(tmp_path / "published")
    again = type(grey.model).from_pretrained(tmp_path / "published")
    torch.testing.assert_close(again.decode(latents).sample, decoded, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["vae", "vqvae"])
def test_it_may_be_a_part_of_a_pipeline(tmp_path, part):
    tiny_kl().save_pretrained(tmp_path / part)
    (tmp_path / "config.json").write_text("{}")
    assert find_autoencoder(str(tmp_path)).directory == tmp_path / part


def edited(path, model, **changes):
    model.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def without_weights(path):
    tiny_kl().save_pretrained(path)
    (path / "diffusion_pytorch_model.safetensors").unlink()


REFUSED = {
    "nothing": (lambda path: path.mkdir(), {}, "has no autoencoder: give the directory or Hub id of an AutoencoderKL"),
    "a denoiser": (lambda path: smallest_unet().save_pretrained(path), {}, "is a UNet2DModel: give an autoencoder"),
    "a noise scheduler": (
        lambda path: DDPMScheduler().save_pretrained(path),
        {},
        "has no autoencoder: give the directory or Hub id",
    ),
    "no class": (lambda path: edited(path, tiny_kl(), _class_name=None), {}, "is a None: give an autoencoder of the"),
    "unknown blocks": (
        lambda path: edited(path, tiny_kl(), down_block_types=["NoBlock2D"]),
        {},
        "gives no AutoencoderKL",
    ),
    "other channels": (
        lambda path: edited(path, tiny_kl(), in_channels=4),
        {},
        "takes 4 channels and gives 3: give one of grey",
    ),
    "colours": (
        lambda path: tiny_kl(channels=1).save_pretrained(path),
        {},
        "takes grey images alone, and the images are in colour: load the images with `channels` 1",
    ),
    "an odd size": (
        lambda path: tiny_kl().save_pretrained(path),
        {"resolution": 18},
        "makes images 4 times smaller, and 18 pixels cannot be divided by that: load the images with a `resolution` "
        "that is a multiple of 4",
    ),
    "too small": (
        lambda path: tiny_kl().save_pretrained(path),
        {"resolution": 12},
        "leaves 3x3 of images of 12 pixels, too little for a network: load the images with a `resolution` of at least "
        "16",
    ),
    "another size": (
        lambda path: edited(path, AUTOENCODERS["AutoencoderTiny"](), upsampling_scaling_factor=1),
        {},
        r"does not make latents of \(4, 4, 4\) and images of their old size",
    ),
    "no weights": (without_weights, {}, "has no weights in the format of safetensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_the_autoencoder_is_refused_in_one_sentence(tmp_path, case):
    write, images, message = REFUSED[case]
    write(tmp_path / "public")
    with pytest.raises(InputError, match=message) as refusal:
        find_autoencoder(str(tmp_path / "public")).load(info(**images))
    assert "\n" not in str(refusal.value)


def test_a_checksum_tells_autoencoders_apart(tmp_path):
    one = load(tmp_path / "one", tiny_kl())
    same = load(tmp_path / "same", AutoencoderKL.from_pretrained(tmp_path / "one"))
    other = tiny_kl()
    other.decoder.conv_out.bias.data[0] += 1e-3
    assert one.checksum() == same.checksum() != load(tmp_path / "other", other).checksum()


def test_the_published_pipeline_of_latents_is_found(tmp_path):
    unet = smallest_unet(num_classes=None, channels=3, size=4)
    LDMPipeline(tiny_vq(), unet, DDPMScheduler()).save_pretrained(tmp_path)
    assert find_autoencoder(str(tmp_path)).latent_info(info()).image_shape == (3, 4, 4)
