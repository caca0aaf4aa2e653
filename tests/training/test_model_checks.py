"""A network is refused before anything is spent on it if its config and weights do not describe all of it."""

import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import nn

from diffusers_dp_curriculum import DPCurriculumTrainer, InputError
from helpers import smallest_unet, tiny_records, tiny_scheduler, tiny_unet
from helpers.runs import make_config, make_trainer


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def changed(change):
    unet = smallest_unet()
    change(unet)
    return unet


def tie(unet):
    unet.down_blocks[0].resnets[0].conv2.weight = unet.up_blocks[0].resnets[0].conv2.weight


def replace_layer(unet):
    unet.conv_out = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 1, 3, padding=1))


def begin_with_zeros(unet):
    """Add a path whose last layer is zero, as adapters have it: before training it has no effect."""
    unet.conv_act = nn.Sequential(nn.SiLU(), nn.Tanh())
    nn.init.zeros_(unet.conv_out.weight)


def add_lora(unet):
    unet.conv_in.lora_a, unet.conv_in.lora_b = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 8, 1)
    unet.conv_in.register_forward_hook(lambda layer, inputs, out: out + layer.lora_b(layer.lora_a(*inputs)))


NOT_IN_THE_CONFIG = {
    "tied weights": (tie, "RuntimeError: Some tensors share memory"),
    "a replaced layer": (replace_layer, r"only one of the two has conv_out\.0\.bias"),
    "a layer of another size": (lambda unet: setattr(unet, "conv_out", nn.Conv2d(8, 1, 5, padding=2)), "ValueError"),
    "a replaced activation": (lambda unet: setattr(unet, "conv_act", nn.Tanh()), "their outputs differ"),
    "a layer that begins with zeros": (begin_with_zeros, "their outputs differ"),
    "another number of groups": (lambda unet: setattr(unet.conv_norm_out, "num_groups", 2), "their outputs differ"),
    "an adapter": (add_lora, "only one of the two has conv_in.lora_a"),
    "weight norm": (lambda unet: nn.utils.parametrizations.weight_norm(unet.conv_out), "only one of the two has"),
    "a hook": (lambda unet: unet.conv_out.register_forward_hook(lambda *call: call[-1] * 2), "their outputs differ"),
}


@pytest.mark.parametrize("case", NOT_IN_THE_CONFIG)
def test_a_network_that_its_config_cannot_rebuild_is_refused(tmp_path, case):
    change, reason = NOT_IN_THE_CONFIG[case]
    unet = changed(change)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    with pytest.raises(InputError, match=f"not the network that its config .*{reason}") as refusal:
        make_trainer(tmp_path / "model", unet)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "model").exists()
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_another_implementation_of_attention_is_the_same_network(tmp_path):
    unet = tiny_unet()
    for layer in unet.modules():
        if isinstance(layer, Attention):
            layer.set_processor(AttnProcessor())
    make_trainer(tmp_path / "model", unet)


class OwnUNet(UNet2DModel):
    pass


def conditional_unet():
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "mid_block_type": None}
    return UNet2DConditionModel(8, 1, 1, block_out_channels=[8], norm_num_groups=4, num_class_embeds=4, **blocks)


def transformer():
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=1, num_layers=1, sample_size=8, num_embeds_ada_norm=4
    )


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: OwnUNet(**smallest_unet().config), "OwnUNet"),
        (lambda: nn.DataParallel(smallest_unet()), "DataParallel"),
        (lambda: torch.compile(smallest_unet()), "OptimizedModule"),
        (conditional_unet, "UNet2DConditionModel"),
        (transformer, "DiTTransformer2DModel"),
    ],
)
def test_only_a_plain_unet_is_taken(tmp_path, make, kind):
    with pytest.raises(InputError, match=f"`unet` is of type {kind}, .* give the UNet2DModel itself"):
        make_trainer(tmp_path / "model", make())


def compile_a_part(unet):
    unet.conv_out = torch.compile(unet.conv_out)


@pytest.mark.parametrize(("change", "where"), [(lambda unet: unet.compile(), "it"), (compile_a_part, "conv_out")])
def test_a_network_that_is_compiled_in_place_is_refused(tmp_path, change, where):
    with pytest.raises(InputError, match=rf"The UNet is compiled \(by `torch.compile` of {where}\):"):
        make_trainer(tmp_path / "model", changed(change))


def test_classes_as_vectors_are_refused(tmp_path):
    with pytest.raises(InputError, match="class_embed_type='identity', which takes vectors"):
        make_trainer(tmp_path / "model", smallest_unet(class_embed_type="identity"))


def test_an_error_inside_the_network_is_one_sentence(tmp_path):
    unet = changed(lambda unet: setattr(unet, "conv_norm_out", nn.GroupNorm(4, 16)))
    with pytest.raises(InputError, match=r"The UNet fails on random images \(RuntimeError: Expected weight"):
        make_trainer(tmp_path / "model", unet)


class OwnScheduler(DDPMScheduler):
    pass


def stretched_scheduler():
    scheduler = tiny_scheduler()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    return scheduler


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (OwnScheduler(), "The noise scheduler is a OwnScheduler, which diffusers cannot load"),
        (stretched_scheduler(), "The noise scheduler's alphas_cumprod is not what its config gives"),
    ],
)
def test_a_noise_scheduler_that_its_config_cannot_rebuild_is_refused(tmp_path, scheduler, message):
    with pytest.raises(InputError, match=message):
        DPCurriculumTrainer(smallest_unet(), scheduler, make_config(tmp_path / "model"), tiny_records())
