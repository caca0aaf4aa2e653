"""Tiny autoencoders of each class, which make images four times smaller."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel


BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (4, 4, 4),
    "norm_num_groups": 2,
}


def tiny_kl(channels=3, **options):
    options = {"latent_channels": 4, "scaling_factor": 0.5, **options}
    return _random(AutoencoderKL, in_channels=channels, out_channels=channels, **BLOCKS, **options)


def tiny_vq(channels=3, **options):
    options = {"latent_channels": 3, "num_vq_embeddings": 16, **options}
    return _random(VQModel, in_channels=channels, out_channels=channels, **BLOCKS, **options)


def tiny_taesd(channels=3, levels=3, **options):
    options = {f"{half}_block_out_channels": (4,) * levels for half in ("encoder", "decoder")} | options
    options |= {f"num_{half}_blocks": (1,) * levels for half in ("encoder", "decoder")}
    return _random(AutoencoderTiny, in_channels=channels, out_channels=channels, **options)


AUTOENCODERS = {"AutoencoderKL": tiny_kl, "AutoencoderTiny": tiny_taesd, "VQModel": tiny_vq}


def _random(kind, **options):
    """An autoencoder with random weights that let images differ much in their latents."""
    torch.manual_seed(0)
    model = kind(**options).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    return model
