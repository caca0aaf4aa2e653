"""The compiled gradients are those of the loop."""

import pytest
import torch

from diffusers_dp_curriculum import DPCurriculumConfig
from diffusers_dp_curriculum.gradients.compilation import CompiledGradients
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.gradients.per_record_gradients import (
    check_gradients_stay_apart,
    difference_from_loop,
    per_record_gradients,
)
from diffusers_dp_curriculum.gradients.trials import random_draws
from diffusers_dp_curriculum.training.trainable import trained_part
from helpers import attending_unet, smallest_unet, tiny_scheduler
from helpers.networks import Small
from helpers.reference_gradients import make_draws, relative_errors
from helpers.wrong_kernels import wrong_for_one_parameter


@pytest.mark.parametrize("num_classes", [3, None])
def test_compiled_gradients_follow_the_parameters_and_take_smaller_batches(num_classes):
    """The backend `aot_eager` does all that a compiler does except generating machine code."""
    torch.manual_seed(0)
    unet = smallest_unet(num_classes=num_classes)
    unet.conv_in.bias.requires_grad_(False)
    gradients_of = CompiledGradients(unet, num_records=4, backend="aot_eager")
    for count in (4, 1, 3):
        draws = make_draws(unet, count)
        gradients = gradients_of(draws)
        assert relative_errors(gradients, per_record_gradients(unet, draws, "loop")).max() < 1e-5
        assert len(gradients["conv_out.weight"]) == count
        unet.conv_in.weight.data.normal_()
        unet.conv_in.bias.data.normal_()  # which the trace holds, as it is not trainable


def test_a_trace_from_the_trial_of_adapters_takes_those_of_the_run_and_the_weights_of_then():
    torch.manual_seed(0)
    unet = attending_unet()
    draws = make_draws(unet, 2)
    gradients_of = CompiledGradients(unet, num_records=2, backend="aot_eager")
    for seed in (0, 1):
        with trained_part(unet, DPCurriculumConfig(trainable="lora", lora_rank=2, seed=seed)):
            for name, p in unet.named_parameters():
                p.data.add_(torch.randn_like(p), alpha=0.1 if "lora_B" in name else 0)
            assert relative_errors(gradients_of(draws), per_record_gradients(unet, draws, "loop")).max() < 1e-5
        for p in unet.parameters():  # as a warm-up does
            p.data.add_(torch.randn_like(p), alpha=0.1)
    assert len(gradients_of.compiled) == 1


def small_draws():
    return random_draws(DenoisingLoss(tiny_scheduler()), (1, 8, 8), 3, 2, torch.device("cpu"))


def test_each_mode_of_the_layers_has_its_own_trace():
    """The trace of training mode has dropout, and the trace for the comparison with the loop has none."""
    network, draws = Small(dropout=0.5), small_draws()
    gradients_of = CompiledGradients(network, num_records=3, backend="aot_eager")
    for training in (True, False, True):
        network.train(training)
        one, two = gradients_of(draws), gradients_of(draws)
        assert torch.equal(one["conv.weight"], two["conv.weight"]) != training
    assert len(gradients_of.compiled) == 2
    assert difference_from_loop(gradients_of, network, draws) is None
    check_gradients_stay_apart(gradients_of, network, draws)
    assert set(gradients_of.compiled) == {(True, True, True), (False, False, False), (True, True, False)}


def test_the_first_call_draws_as_every_other():
    network, draws = Small(dropout=0.5), small_draws()
    gradients_of = CompiledGradients(network, num_records=3, backend="aot_eager")
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(gradients_of(draws)["conv.weight"])
    assert torch.equal(*found)


def test_a_wrong_compiled_graph_is_noticed():
    network = Small()
    gradients_of = CompiledGradients(network, num_records=3, backend=wrong_for_one_parameter)
    reason = difference_from_loop(gradients_of, network, small_draws())
    assert reason == "conv.bias: it gives another gradient than an ordinary backward pass"
