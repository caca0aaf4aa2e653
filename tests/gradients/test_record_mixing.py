"""Networks that mix records, or keep anything of them, are refused with the layer's name; others are unchanged."""

import random
from collections import deque
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.gradients.precision import FULL_PRECISION, Precision
from diffusers_dp_curriculum.gradients.record_mixing import check_records_stay_apart
from diffusers_dp_curriculum.gradients.trials import random_draws
from helpers import tiny_scheduler, tiny_unet
from helpers.networks import Wrapped, random_unet
from helpers.reference_gradients import BF16
from helpers.runs import make_trainer


CPU = torch.device("cpu")


def some_rows(count=3, channels=1, null_label=3):
    loss = DenoisingLoss(tiny_scheduler(), null_label=null_label)
    return random_draws(loss, (channels, 8, 8), count, 1, CPU).flatten()


class Layer(Wrapped):
    """A UNet whose input first goes through another layer, called `layer`."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def before(self, noisy):
        return self.layer(noisy)


class WhenTrained(torch.nn.Module):
    """A layer that calls `mix` in training mode alone; `add` can give it parameters and buffers."""

    def __init__(self, mix, add=lambda module: None):
        super().__init__()
        self.mix = mix
        add(self)

    def forward(self, rows):
        return self.mix(self, rows) if self.training else rows


class GradientsMixed(torch.autograd.Function):
    """The identity in the forward pass; the backward pass mixes records."""

    @staticmethod
    def forward(ctx, rows):
        return rows.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient - gradient.mean(dim=0, keepdim=True)


class EmbeddingMixed(torch.nn.Module):
    """Mixes the gradients of an embedding, which lead to no part of the image."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding

    def forward(self, *inputs):
        return GradientsMixed.apply(self.embedding(*inputs))


def shuffled_by_dropout(module, rows):
    return torch.where(torch.rand(len(rows), 1, 1, 1) < 0.9, rows.roll(1, 0), rows)


MIXERS = {
    "the mean": lambda module, rows: rows - rows.mean(dim=0, keepdim=True),
    "a hundredth of the mean": lambda module, rows: rows - 0.01 * rows.mean(dim=0, keepdim=True),
    "the largest": lambda module, rows: rows / rows.abs().amax(),
    "the one before": lambda module, rows: rows + F.pad(rows, (0, 0, 0, 0, 0, 0, 1, 0))[:-1],
    "the one after": lambda module, rows: rows + F.pad(rows, (0, 0, 0, 0, 0, 0, 0, 1))[1:],
    "every other": lambda module, rows: torch.cat([rows[::2] - rows[::2].mean(dim=0), rows[1::2]])[[0, 2, 1]],
    "the one before the one before": lambda module, rows: rows + rows.roll(2, 0),
    "signs": lambda module, rows: rows * rows.flip(0).sign(),
    "batch statistics": lambda module, rows: F.batch_norm(rows, None, None, training=True),
    "random neighbours": shuffled_by_dropout,
}


@pytest.mark.parametrize("mix", MIXERS.values(), ids=MIXERS)
@pytest.mark.parametrize("precision", [FULL_PRECISION, BF16], ids=["float32", "bf16"])
def test_layers_that_mix_records_in_training_alone_are_refused(mix, precision):
    with pytest.raises(InputError, match=r"layer \(WhenTrained\) mixes the records of a batch in its forward pass"):
        check_records_stay_apart(Layer(WhenTrained(mix)), some_rows(), precision)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "trained by a warm-up alone"])
def test_mixing_is_seen_behind_a_last_layer_that_is_zero_and_with_one_row_in_training(frozen):
    network = Layer(WhenTrained(MIXERS["the mean"]))
    network.unet.conv_out.requires_grad_(not frozen)
    torch.nn.init.zeros_(network.unet.conv_out.weight)
    torch.nn.init.zeros_(network.unet.conv_out.bias)
    with pytest.raises(InputError, match="mixes the records"):
        check_records_stay_apart(network, some_rows(2), backward=False)


def test_what_the_network_itself_mixes_is_refused_by_its_name():
    class Centring(Wrapped):
        def before(self, noisy):
            return noisy - noisy.mean(dim=0, keepdim=True)

    with pytest.raises(InputError, match=r"The network \(Centring\) mixes"):
        check_records_stay_apart(Centring(), some_rows())


def test_a_layer_deep_in_the_network_is_named():
    unet = tiny_unet()
    unet.mid_block.resnets[1].conv1 = torch.nn.Sequential(
        unet.mid_block.resnets[1].conv1, WhenTrained(MIXERS["the mean"])
    )
    with pytest.raises(InputError, match=r"mid_block.resnets.1.conv1.1 \(WhenTrained\)"):
        check_records_stay_apart(unet, some_rows())


def test_labels_that_are_mixed_are_refused():
    unet = tiny_unet()
    unet.class_embedding = torch.nn.Sequential(unet.class_embedding, WhenTrained(lambda _, rows: rows + rows.mean(0)))
    with pytest.raises(InputError, match=r"class_embedding.1 \(WhenTrained\) mixes"):
        check_records_stay_apart(unet, some_rows())


def test_layers_that_mix_gradients_are_refused():
    network = Layer(WhenTrained(lambda _, rows: GradientsMixed.apply(rows)))
    with pytest.raises(InputError, match=r"layer \(WhenTrained\) mixes the records of a batch in its backward pass"):
        check_records_stay_apart(network, some_rows())
    unet = tiny_unet()
    unet.time_embedding = EmbeddingMixed(unet.time_embedding)
    with pytest.raises(InputError, match=r"time_embedding \(EmbeddingMixed\) mixes .* backward pass"):
        check_records_stay_apart(unet, some_rows())


def test_gradient_checkpointing_hides_nothing():
    unet = tiny_unet()
    unet.enable_gradient_checkpointing()
    check_records_stay_apart(unet, some_rows())
    unet.down_blocks[0].resnets[0].norm1 = WhenTrained(lambda _, rows: GradientsMixed.apply(rows))
    with pytest.raises(InputError, match="norm1 .*backward pass"):
        check_records_stay_apart(unet, some_rows())


def running_mean(module, rows):
    with torch.no_grad():
        module.kept.lerp_(rows.mean(), 0.001)
    return rows - module.kept


def weights_of_the_batch(module, rows):
    with torch.no_grad():
        module.kept.data.mul_(0.999)
    return rows * module.kept


def initialised_by_the_first_batch(module, rows):
    if module.kept is None:
        module.kept = rows.detach().std()
    return rows / module.kept


def remember(module, rows):
    module.kept = rows.detach()[0]
    return rows


def remember_in_a_list(module, rows):
    module.kept.append([{"mean": rows.mean().item()}])
    return rows


def register_when_called(module, rows):
    if not hasattr(module, "kept"):
        module.register_buffer("kept", rows.detach().std())
    return rows / module.kept


def from_the_second_batch_on(module, rows):
    module.kept += module.started * rows.detach().mean()
    module.started = 1
    return rows


CLOSURE = []


def remember_outside(module, rows):
    CLOSURE.append(rows.detach().mean())
    return rows - (CLOSURE[-2] if len(CLOSURE) > 1 else 0)


def give(**values):
    def add(module):
        for name, value in values.items():
            setattr(module, name, value() if callable(value) else value)

    return add


KEEPERS = {
    "a buffer": (running_mean, lambda m: m.register_buffer("kept", torch.zeros(())), "the buffer layer.kept"),
    "a buffer that is not published": (
        running_mean,
        lambda m: m.register_buffer("kept", torch.zeros(()), persistent=False),
        "the buffer layer.kept",
    ),
    "a counter": (
        lambda module, rows: (module.kept.add_(1), rows)[1],
        lambda m: m.register_buffer("kept", torch.zeros((), dtype=torch.int64)),
        "the buffer layer.kept",
    ),
    "a buffer that the first batch makes": (register_when_called, give(), "the buffer layer.kept"),
    "a buffer from the second batch on": (
        from_the_second_batch_on,
        lambda m: give(started=0)(m) or m.register_buffer("kept", torch.zeros(())),
        "the buffer layer.kept",
    ),
    "a frozen parameter": (
        running_mean,
        lambda m: m.register_parameter("kept", torch.nn.Parameter(torch.zeros(()), requires_grad=False)),
        "the parameter layer.kept",
    ),
    "a parameter": (
        weights_of_the_batch,
        lambda m: m.register_parameter("kept", torch.nn.Parameter(torch.ones(()))),
        "the parameter layer.kept",
    ),
    "an attribute": (running_mean, give(kept=lambda: torch.zeros(())), "layer.kept"),
    "an attribute of the last batch": (remember, give(kept=None), "layer.kept"),
    "an attribute of the first batch": (initialised_by_the_first_batch, give(kept=None), "layer.kept"),
    "numbers in a list": (remember_in_a_list, give(kept=lambda: deque(maxlen=9)), "layer.kept.0.0.mean"),
    "a variable outside": (remember_outside, give(), "the batches before it"),
}


@pytest.mark.parametrize(("mix", "add", "named"), KEEPERS.values(), ids=KEEPERS)
def test_layers_that_keep_something_of_a_batch_are_refused_by_name(mix, add, named):
    with pytest.raises(InputError, match=named.replace(".", r"\.")) as refusal:
        check_records_stay_apart(Layer(WhenTrained(mix, add)), some_rows())
    assert "\n" not in str(refusal.value)


def test_a_state_that_no_answer_shows_is_refused():
    """The output does not depend on the buffer, but the buffer would be published."""
    network = Layer(WhenTrained(lambda module, rows: (running_mean(module, rows), rows)[1], KEEPERS["a buffer"][1]))
    with pytest.raises(InputError, match="the buffer layer.kept, .* would be published"):
        check_records_stay_apart(network, some_rows())


@pytest.mark.parametrize(
    "wrap", [torch.nn.utils.spectral_norm, torch.nn.utils.parametrizations.spectral_norm], ids=["old", "new"]
)
def test_power_iteration_is_refused(wrap):
    unet = tiny_unet()
    unet.conv_in = wrap(unet.conv_in)
    with pytest.raises(InputError, match=r"changes the buffer conv_in\..*_u"):
        check_records_stay_apart(unet, some_rows())


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm2d(8), torch.nn.InstanceNorm2d(8, track_running_stats=True)])
def test_layers_that_are_known_for_it_are_refused_with_what_to_use(layer):
    unet = tiny_unet()
    unet.conv_norm_out = layer
    with pytest.raises(InputError, match=rf"conv_norm_out \({type(layer).__name__}\) .*: use GroupNorm"):
        check_records_stay_apart(unet, some_rows())


def test_a_network_that_holds_a_tensor_of_an_earlier_pass_is_refused_by_its_name():
    network = Layer(torch.nn.Conv2d(1, 1, 1))
    network.layer.last = network.layer(torch.ones(1, 1, 8, 8))
    with pytest.raises(InputError, match=r"cannot be copied \(RuntimeError\), as it keeps layer\.last"):
        check_records_stay_apart(network, some_rows())


def cached_by_size(module, rows):
    if module.kept.get(rows.shape) is None:
        module.kept[rows.shape] = torch.arange(rows.shape[-1]) / 8
        module.calls += 1
    return rows + module.kept[rows.shape]


class NumPyNoise(torch.nn.Module):
    def forward(self, rows):
        return rows * np.random.rand() * random.random() + torch.randn_like(rows)


HARMLESS = {
    "a cache by size": lambda: Layer(WhenTrained(cached_by_size, give(kept=dict, calls=0))),
    "dropout": lambda: tiny_unet(dropout=0.5),
    "noise of its own": lambda: Layer(NumPyNoise()),
    "weight norm": lambda: Layer(torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(1, 1, 1))),
    "frozen": lambda: Layer(torch.nn.Conv2d(1, 1, 1).requires_grad_(False)),
    "colours as many as rows": lambda: tiny_unet(
        channels=3, down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D")
    ),
    **{f"any UNet ({seed})": partial(random_unet, seed) for seed in range(8)},
}


@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS)
@pytest.mark.parametrize("precision", [FULL_PRECISION, Precision(BF16.autocast, 1024.0)], ids=["float32", "bf16"])
def test_networks_that_treat_each_record_alone_pass_and_stay_as_they_are(make, precision):
    torch.manual_seed(0)
    network = make().eval()
    parameters = list(network.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    next(network.children()).train()  # each layer has a mode of its own
    modes = [module.training for module in network.modules()]
    before = set(vars(network)), [(p.detach().clone(), p.requires_grad) for p in parameters]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    channels, classes = network.config.in_channels, network.config.num_class_embeds
    check_records_stay_apart(network, some_rows(3, channels, None if classes is None else 3), precision)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert set(vars(network)) == before[0]
    for p, (value, needs_gradient) in zip(parameters, before[1], strict=True):
        assert torch.equal(p, value)
        assert p.requires_grad == needs_gradient
    assert torch.equal(parameters[0].grad, torch.ones_like(parameters[0]))
    assert all(p.grad is None for p in parameters[1:])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("options", [{}, {"grad_sample_mode": "loop"}, {"max_physical_batch_size": 1}])
def test_a_trainer_refuses_them_before_anything_is_written(tmp_path, options):
    unet = tiny_unet()
    unet.conv_in = torch.nn.Sequential(unet.conv_in, WhenTrained(MIXERS["the mean"]))
    with pytest.raises(InputError, match=r"conv_in.1 \(WhenTrained\) mixes the records"):
        make_trainer(tmp_path / "model", unet=unet, noise_multiplicity=1, **options)
    assert not (tmp_path / "model").exists()


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_a_trainer_tries_the_network_in_the_precision_that_trains(tmp_path, precision):
    """The layer mixes records in bfloat16 alone."""

    def mix(module, inputs, rows):
        return rows - rows.mean(dim=0, keepdim=True) if rows.dtype == torch.bfloat16 and module.training else rows

    unet = tiny_unet()
    unet.conv_in.register_forward_hook(mix)
    if precision == "no":
        make_trainer(tmp_path / "model", unet=unet)
        return
    with pytest.raises(InputError, match="mixes the records"):
        make_trainer(tmp_path / "model", unet=unet, mixed_precision=precision)
