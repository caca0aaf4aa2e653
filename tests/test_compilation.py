"""The compiled gradients are those of the loop."""

import pytest
import torch

from diffusers_dp_curriculum.compilation import CompiledGradients
from diffusers_dp_curriculum.per_record_gradients import per_record_gradients
from helpers import tiny_unet
from test_per_record_gradients import make_draws, relative_errors


@pytest.mark.parametrize("num_classes", [3, None])
def test_compiled_gradients_follow_the_parameters_and_take_smaller_batches(num_classes):
    """`aot_eager` takes the whole way of a compiler but for the making of machine code."""
    torch.manual_seed(0)
    unet = tiny_unet(num_classes=num_classes)
    unet.conv_in.bias.requires_grad_(False)
    gradients_of = CompiledGradients(unet, num_records=4, backend="aot_eager")
    for count in (4, 1, 3):
        draws = make_draws(unet, count)
        gradients = gradients_of(draws)
        assert relative_errors(gradients, per_record_gradients(unet, draws, "loop")).max() < 1e-5
        assert len(gradients["conv_out.weight"]) == count
        unet.conv_in.weight.data.normal_()
