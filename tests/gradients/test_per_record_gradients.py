"""Per-record gradients of both modes agree with a simple float64 loop; networks without rules take the loop."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.gradients import folded_layers
from diffusers_dp_curriculum.gradients.losses import NoiseDraws
from diffusers_dp_curriculum.gradients.per_record_gradients import (
    check_gradients_stay_apart,
    choose_mode,
    difference_from_loop,
    per_record_gradients,
)
from diffusers_dp_curriculum.gradients.precision import LOSS_SCALES, Precision
from helpers import tiny_unet
from helpers.networks import Wrapped, random_unet
from helpers.reference_gradients import BF16, clipped_sum, flat, make_draws, naive_gradients, relative_errors
from helpers.wrong_kernels import wrong_in_bfloat16


@pytest.mark.parametrize("seed", range(24))
def test_both_modes_agree_with_a_naive_float64_loop(seed):
    unet = random_unet(seed)
    unet.conv_in.bias.requires_grad_(False)  # a frozen parameter has no gradient
    draws = make_draws(unet)
    expected = naive_gradients(unet, draws)
    max_grad_norm = flat(expected).norm(dim=1).median()
    for mode in ("folded", "loop"):
        gradients = per_record_gradients(unet, draws, mode)
        assert "conv_in.bias" not in gradients
        assert relative_errors(gradients, expected).max() < 5e-5  # float32 in some of these networks
        difference = clipped_sum(gradients, max_grad_norm) - clipped_sum(expected, max_grad_norm)
        assert difference.norm() < 1e-5 * clipped_sum(expected, max_grad_norm).norm()
    assert choose_mode(unet, draws, 3, "auto") == "folded"


@pytest.mark.parametrize("seed", range(6))
def test_under_autocast_the_modes_agree_and_are_as_exact_as_ordinary_training(seed):
    """The error in bfloat16 is the rounding of the network itself, as in an ordinary backward pass."""
    unet = random_unet(seed)
    draws = make_draws(unet, count=8)
    expected = clipped_sum(naive_gradients(unet, draws), 0.1)
    folded, loop = (per_record_gradients(unet, draws, mode, BF16) for mode in ("folded", "loop"))
    assert {gradient.dtype for gradient in folded.values()} == {torch.float32}
    sums = [clipped_sum(gradients, 0.1) for gradients in (folded, loop)]
    assert (sums[0] - sums[1]).norm() / sums[1].norm() < 1e-2
    errors = [(of_mode - expected).norm() / expected.norm() for of_mode in sums]
    assert errors[0] < 1.05 * errors[1] < 5e-2


def test_identity_class_embedding():
    """The third kind of class embedding takes vectors in place of labels."""
    torch.manual_seed(0)
    unet = tiny_unet(num_classes=None, class_embed_type="identity")
    draws = make_draws(unet)
    draws.labels = torch.randn(5, 3, unet.time_embedding.linear_2.out_features)
    assert relative_errors(per_record_gradients(unet, draws, "folded"), naive_gradients(unet, draws)).max() < 1e-5


def test_one_record_and_one_draw():
    torch.manual_seed(0)
    unet = tiny_unet()
    for count, noise_multiplicity in ((1, 1), (1, 4), (4, 1)):
        draws = make_draws(unet, count, noise_multiplicity)
        assert relative_errors(per_record_gradients(unet, draws, "folded"), naive_gradients(unet, draws)).max() < 1e-5


class UsedTwice(Wrapped):
    def before(self, noisy):
        return self.conv(self.conv(noisy))


class UnknownFunction(Wrapped):
    def before(self, noisy):
        return noisy * self.conv.bias


class UnknownLayer(Wrapped):
    def before(self, noisy):
        return F.conv_transpose2d(noisy, self.conv.weight, padding=1)


class ParameterAsInput(Wrapped):
    """A parameter is the input of a layer."""

    def before(self, noisy):
        return noisy + F.linear(self.conv.weight, noisy.new_ones(3, 3)).mean()


class Detour(Wrapped):
    """A parameter is used by a layer and also outside of it."""

    def before(self, noisy):
        return self.conv(noisy) + self.conv.weight.sum()


class RowsMoved(Wrapped):
    """A layer gets the rows in another order than that of the records."""

    def before(self, noisy):
        return self.conv(noisy.roll(1, 0)).roll(-1, 0)


class Unused(Wrapped):
    pass


class ZeroOutput(Detour):
    """Its initial output is zero, so that all gradients before its last layer are zero in either mode."""

    def __init__(self):
        super().__init__()
        torch.nn.init.zeros_(self.unet.conv_out.weight)


class Tied(Wrapped):
    """One parameter under two names."""

    def __init__(self):
        super().__init__()
        self.other = torch.nn.Conv2d(1, 1, 3, padding=1)
        self.other.weight = self.conv.weight

    def before(self, noisy):
        return self.other(self.conv(noisy))


class TwoNames(UsedTwice):
    """One module under two names, as in an attribute and a list."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([self.conv])


@pytest.mark.parametrize("network", [UsedTwice, Unused, Tied, TwoNames])
def test_parameters_used_more_than_once_or_not_at_all_fold(network):
    unet = network()
    draws = make_draws(unet)
    expected = naive_gradients(unet, draws)
    weight = unet.conv.weight
    assert choose_mode(unet, draws, 3, "folded") == "folded"
    assert relative_errors(per_record_gradients(unet, draws, "folded"), expected).max() < 1e-5
    assert unet.conv.weight is weight


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (UnknownFunction, "conv.bias: no rule for the function mul"),
        (UnknownLayer, "conv.weight: no rule for the function conv_transpose2d"),
        (ParameterAsInput, "conv.weight: no rule for the function linear"),
        (Detour, "conv.weight: no rule for the function sum"),
        (ZeroOutput, "conv.weight: no rule for the function sum"),
        (RowsMoved, "conv.weight: it gives another gradient"),
    ],
)
def test_what_has_no_rule_takes_the_loop_or_is_refused_by_name(network, reason):
    unet = network()
    draws = make_draws(unet)
    assert choose_mode(unet, draws, 3, "auto") == "loop"
    assert relative_errors(per_record_gradients(unet, draws, "loop"), naive_gradients(unet, draws)).max() < 1e-5
    with pytest.raises(InputError, match=reason):
        choose_mode(unet, draws, 3, "folded")


def test_a_mode_that_is_asked_for_is_taken():
    unet = tiny_unet()
    for mode in ("loop", "folded"):
        assert choose_mode(unet, make_draws(unet), 3, mode) == mode


def test_many_draws_of_large_images_take_the_loop_on_a_cpu():
    """The loop is as fast there, and takes the memory of one record; 8 draws of 28x28 are not enough work."""
    unet = tiny_unet(size=28)
    draws = make_draws(unet, count=2, noise_multiplicity=1)
    assert choose_mode(unet, draws, 8, "auto") == "folded"
    assert choose_mode(unet, draws, 32, "auto") == "loop"
    assert choose_mode(unet, draws, 32, "folded") == "folded"


def test_choosing_a_mode_changes_nothing_even_if_it_fails():
    for network, mode in ((tiny_unet, "auto"), (Detour, "folded")):
        torch.manual_seed(0)
        unet = network().eval()
        first = next(unet.children()).train()
        next(first.parameters()).grad = gradient = torch.ones_like(next(first.parameters()))
        before = copy.deepcopy(unet.state_dict())
        modes = [module.training for module in unet.modules()]
        draws = make_draws(unet)
        state = torch.get_rng_state()
        if mode == "folded":
            with pytest.raises(InputError):
                choose_mode(unet, draws, 3, mode)
        else:
            choose_mode(unet, draws, 3, mode)
        assert [module.training for module in unet.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
        assert next(first.parameters()).grad is gradient
        assert sum(p.grad is not None for p in unet.parameters()) == 1


def test_modes_are_compared_in_the_type_that_trains(monkeypatch):
    monkeypatch.setattr(folded_layers, "_per_record", wrong_in_bfloat16)
    unet = tiny_unet()
    draws = make_draws(unet)
    assert choose_mode(unet, draws, 3, "auto") == "folded"
    assert choose_mode(unet, draws, 3, "auto", BF16) == "loop"
    with pytest.raises(InputError, match=r"weight: it gives another gradient than an ordinary backward pass"):
        choose_mode(unet, draws, 3, "folded", BF16)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("dtype", "loss_scale"), [(torch.bfloat16, 1.0), (torch.float16, LOSS_SCALES["fp16"])])
def test_rounding_is_not_taken_for_another_gradient(seed, dtype, loss_scale):
    unet = random_unet(seed)
    draws = make_draws(unet, 3, 2)
    assert (
        choose_mode(unet, draws, 2, "folded", Precision(partial(torch.autocast, "cpu", dtype), loss_scale)) == "folded"
    )


def test_modes_are_compared_in_training_mode(monkeypatch):
    """This layer does something without a rule, in training mode alone."""

    class Scaled(Detour):
        def before(self, noisy):
            return super().before(noisy) if self.training else noisy

    unet = Scaled().eval()
    assert choose_mode(unet, make_draws(unet), 3, "auto") == "loop"


def test_dropout_is_no_difference_between_the_modes():
    unet = tiny_unet(dropout=0.5)
    assert choose_mode(unet, make_draws(unet), 3, "folded") == "folded"


def spoilt(unet, change):
    """A function to gradients that are wrong for one parameter."""

    def gradients_of(draws):
        gradients = per_record_gradients(unet, draws, "folded")
        gradients["conv_in.weight"] = change(gradients["conv_in.weight"])
        return gradients

    return gradients_of


@pytest.mark.parametrize("change", [torch.zeros_like, lambda gradient: gradient * torch.nan, lambda g: 1.01 * g])
def test_other_gradients_are_noticed(change):
    unet = tiny_unet()
    draws = make_draws(unet)
    assert difference_from_loop(spoilt(unet, lambda gradient: gradient), unet, draws) is None
    assert difference_from_loop(spoilt(unet, change), unet, draws).startswith("conv_in.weight: it gives another")


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("strength", [1, 1e-3])
def test_gradients_that_depend_on_other_records_are_refused(count, strength):
    """The network has dropout, with another mask for each record."""
    unet = tiny_unet(dropout=0.5)
    draws = make_draws(unet, count)
    mixed = spoilt(unet, lambda gradient: gradient - strength * gradient.mean(dim=0))
    check_gradients_stay_apart(spoilt(unet, lambda gradient: gradient), unet, draws)
    with pytest.raises(InputError, match="A record's gradient of conv_in.weight depends on the other records"):
        check_gradients_stay_apart(mixed, unet, draws)


def test_a_little_of_other_records_is_not_taken_for_rounding(monkeypatch):
    """Five percent of other records are noticed, although bfloat16 may round by twelve percent."""
    sums = folded_layers._sum_positions

    def mixed(rows, num_records):
        of_records = sums(rows, num_records)
        return of_records + 0.05 * of_records.roll(1, 0)

    monkeypatch.setattr(folded_layers, "_sum_positions", mixed)
    unet = tiny_unet()
    with pytest.raises(InputError, match="bias depends on the other records of its batch"):
        choose_mode(unet, make_draws(unet, 3), 3, "auto", BF16)


def test_a_record_that_has_no_finite_gradient_hides_no_other():
    """A Fourier embedding takes the logarithm of label 0, which is not finite."""
    torch.manual_seed(0)
    unet = tiny_unet(class_embed_type="timestep", time_embedding_type="fourier")
    draws = make_draws(unet, 3)
    draws.labels = torch.tensor([[0], [1], [2]]).expand(3, 3)
    assert not per_record_gradients(unet, draws, "loop")["conv_in.weight"][0].isfinite().any()
    assert choose_mode(unet, draws, 3, "folded") == "folded"
    assert difference_from_loop(spoilt(unet, torch.zeros_like), unet, draws).startswith("conv_in.weight")


class OneLayer(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs, timesteps, labels):
        return SimpleNamespace(sample=self.layer(inputs).flatten(1))


LAYERS = {
    "strided convolution in groups": (torch.nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), (4, 9, 9)),
    "dilated convolution": (torch.nn.Conv2d(4, 8, (3, 2), dilation=2, padding=(0, 3), bias=False), (4, 9, 9)),
    "mirrored padding": (torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (4, 9, 9)),
    "linear on tokens": (torch.nn.Linear(6, 5), (3, 2, 6)),
    "linear": (torch.nn.Linear(6, 5, bias=False), (6,)),
    "group norm of tokens": (torch.nn.GroupNorm(2, 4), (4, 7)),
    "group norm of vectors": (torch.nn.GroupNorm(2, 4), (4,)),
    "layer norm of images": (torch.nn.LayerNorm((4, 5)), (3, 4, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_rules(name):
    """Each rule is tried alone, with inputs that are not contiguous, as in attention."""
    layer, shape = copy.deepcopy(LAYERS[name][0]), LAYERS[name][1]
    torch.manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.normal_()
    num_records, num_draws = 3, 4
    rows = torch.randn(*shape, num_records * num_draws).movedim(-1, 0)
    model = OneLayer(layer)
    inputs = rows.unflatten(0, (num_draws, num_records)).transpose(0, 1)
    draws = NoiseDraws(inputs, torch.zeros(num_records, num_draws), None, torch.ones(num_records, num_draws, 1))
    folded, loop = (per_record_gradients(model, draws, mode) for mode in ("folded", "loop"))
    assert relative_errors(folded, loop).max() < 1e-5


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embeddings_with_options_are_not_folded(options):
    unet = tiny_unet()
    unet.class_embedding = torch.nn.Embedding(4, 32, **options)
    assert choose_mode(unet, make_draws(unet), 3, "auto") == "loop"


def test_padding_by_name_is_not_folded():
    unet = tiny_unet()
    unet.conv_in = torch.nn.Conv2d(1, 8, 3, padding="same")
    unet.conv_in.weight.requires_grad_(False)
    assert choose_mode(unet, make_draws(unet), 3, "auto") == "loop"
