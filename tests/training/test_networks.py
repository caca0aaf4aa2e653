"""Networks and noise schedulers are built from plain numbers, and impossible ones are refused."""

import inspect
from pathlib import Path

import pytest
from diffusers import UNet2DModel

from diffusers_dp_curriculum import InputError, build_scheduler, build_unet
from diffusers_dp_curriculum.commands.train import ScriptArguments
from diffusers_dp_curriculum.options import declared_options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers_per_block": 0}, "`layers_per_block` is 0: give at least 1"),
        ({"attention_levels": 3}, "`attention_levels` is 3: give a number from 0 to 2"),
        ({"attention_levels": -1}, "`attention_levels` is -1"),
        ({"block_out_channels": [16, 30]}, "`block_out_channels` is 30: give a multiple of 8"),
        ({"block_out_channels": [0, 8]}, "`block_out_channels` is 0: give a multiple of 8"),
        ({"block_out_channels": [16.0]}, "`block_out_channels` is 16.0: give a multiple of 8"),
        ({"block_out_channels": ["16"]}, "`block_out_channels` is '16': give a multiple of 8"),
        ({"block_out_channels": []}, "give a list, with a multiple of 8 for each item"),
        ({"block_out_channels": 32}, "`block_out_channels` is 32: give a list"),
        ({"block_out_channels": None}, "`block_out_channels` is None: give a list"),
        ({"model_config_name_or_path": str(Path(__file__).parent)}, "has no config of a UNet2DModel"),
    ],
)
def test_networks_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        build_unet(8, 1, 10, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_scheduler": "vp"}, '`noise_scheduler` is "vp": choose ddpm or edm'),
        ({"ddpm_num_steps": 1}, "`ddpm_num_steps` is 1: give at least 2"),
        ({"ddpm_beta_schedule": "steep"}, '`ddpm_beta_schedule` is "steep": choose linear, '),
        ({"noise_scheduler": "edm", "edm_sigma_data": 0.0}, "`edm_sigma_data` is 0.0: give a number above 0"),
        ({"noise_scheduler": "edm", "edm_sigma_max": 0.001}, "`edm_sigma_max` is 0.001: give a number above 0.002"),
    ],
)
def test_schedules_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        build_scheduler(**changes)


@pytest.mark.parametrize(("num_classes", "embeddings"), [(10, 11), (None, None)])
def test_a_network_fits_the_data_set(num_classes, embeddings):
    config = build_unet(8, 3, num_classes, block_out_channels=[8, 16, 16], attention_levels=2).config
    assert (config.sample_size, config.in_channels, config.out_channels) == (8, 3, 3)
    assert config.num_class_embeds == embeddings
    assert config.down_block_types == ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    assert config.up_block_types == ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")


def test_a_config_of_another_network_gets_the_sizes_of_the_data_set(tmp_path):
    UNet2DModel(
        sample_size=64,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    ).save_config(tmp_path)
    config = build_unet(8, 1, 4, model_config_name_or_path=str(tmp_path)).config
    assert (config.sample_size, config.in_channels, config.num_class_embeds) == (8, 1, 5)
    assert config.block_out_channels == [32, 32]


def test_flags_and_arguments_have_the_same_defaults():
    declared = {option.name: option.default for option in declared_options(ScriptArguments)}
    for function in (build_unet, build_scheduler):
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.default is not parameter.empty and name != "latents":  # which follows from `vae_name_or_path`
                default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
                assert declared[name] == default
