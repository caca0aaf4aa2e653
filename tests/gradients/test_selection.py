"""The gradient function of a run is tried under the conditions of the run, and takes no more memory than the run."""

from functools import partial

import pytest
import torch

from diffusers_dp_curriculum import trainer
from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.gradients import folded_layers, selection
from diffusers_dp_curriculum.gradients.compilation import CompiledGradients
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.gradients.selection import make_gradients_of
from diffusers_dp_curriculum.training.accelerator import make_accelerator
from helpers import tiny_scheduler, tiny_unet
from helpers.networks import Small
from helpers.runs import make_config, make_trainer
from helpers.wrong_kernels import wrong_for_one_parameter, wrong_in_bfloat16


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.mark.parametrize(("precision", "mode"), [("no", "folded"), ("bf16", "loop")])
def test_a_kernel_that_is_wrong_in_the_precision_of_the_run_is_not_used(tmp_path, monkeypatch, precision, mode):
    monkeypatch.setattr(folded_layers, "_per_record", wrong_in_bfloat16)
    trainer = make_trainer(tmp_path / "model", mixed_precision=precision)
    assert trainer.grad_sample_mode == mode
    if precision == "bf16":
        with pytest.raises(InputError, match='weight: it gives another gradient .*: use "loop"'):
            make_trainer(tmp_path / "model", mixed_precision=precision, grad_sample_mode="folded")


@pytest.mark.parametrize("backend", ["aot_eager", wrong_for_one_parameter])
def test_a_wrong_compiled_graph_is_refused(tmp_path, monkeypatch, backend):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "aot_eager")
    monkeypatch.setattr(
        selection,
        "CompiledGradients",
        lambda *args, **options: CompiledGradients(*args, **{**options, "backend": backend}),
    )
    config = make_config(tmp_path / "model")
    inputs = (Small(), DenoisingLoss(tiny_scheduler()), (9, 1, 8, 8), config, make_accelerator(config))
    if backend == "aot_eager":
        assert isinstance(make_gradients_of(*inputs)[1], CompiledGradients)
        return
    with pytest.raises(InputError, match=r"wrong \(conv.bias: it gives .* backward pass\): leave out `dynamo"):
        make_gradients_of(*inputs)


@pytest.mark.parametrize(
    ("physical", "multiplicity", "mode"),
    [
        (1, 1, "auto"),
        (1, 1, "loop"),
        (1, 2, "folded"),
        (2, 1, "auto"),
        (5, 1, "loop"),
        (2, 3, "auto"),
        (5, 4, "folded"),
    ],
)
def test_no_pass_that_keeps_activations_has_more_rows_than_in_training(tmp_path, physical, multiplicity, mode):
    unet, rows = tiny_unet(), []
    unet.register_forward_hook(lambda _, inputs, output: rows.extend([len(inputs[0])] * torch.is_grad_enabled()))
    trainer = make_trainer(
        tmp_path / "model",
        unet=unet,
        max_physical_batch_size=physical,
        noise_multiplicity=multiplicity,
        grad_sample_mode=mode,
    )
    at_once = 1 if trainer.grad_sample_mode == "loop" else physical
    assert max(rows, default=0) <= multiplicity * at_once


def test_the_loop_of_large_images_is_tried_a_row_at_a_time():
    """A CPU chooses the loop by itself, and then no pass of training has two rows."""
    rows, network = [], Small()
    network.register_forward_hook(lambda _, inputs, output: rows.extend([len(inputs[0])] * torch.is_grad_enabled()))
    config = make_config("nowhere", noise_multiplicity=1)
    loss, shape = DenoisingLoss(tiny_scheduler()), (9, 1, 128, 128)
    assert make_gradients_of(network, loss, shape, config, make_accelerator(config))[0] == "loop"
    assert set(rows) == {1}


def test_a_network_is_left_as_it_was(tmp_path):
    unet = tiny_unet(dropout=0.1)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    make_trainer(tmp_path / "model", unet=unet)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in unet.parameters())


class MixesItsGradient(torch.autograd.Function):
    """A multiplication whose gradient is mixed for the factor alone, and right for the rows."""

    @staticmethod
    def forward(ctx, rows, scale):
        ctx.save_for_backward(rows, scale)
        return rows * scale

    @staticmethod
    def backward(ctx, gradient):
        rows, scale = ctx.saved_tensors
        return gradient * scale, (rows * gradient.mean(dim=0)).sum().view(1)


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, rows):
        return MixesItsGradient.apply(rows, self.scale)


def test_a_parameter_whose_gradient_is_mixed_is_taken_one_record_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "check_round_trip", lambda *_: None)  # would refuse the part that is added
    unet = tiny_unet()
    unet.conv_in = torch.nn.Sequential(unet.conv_in, Scale())
    assert make_trainer(tmp_path / "model", unet=unet).grad_sample_mode == "loop"
    with pytest.raises(InputError, match="conv_in.1.scale"):
        make_trainer(tmp_path / "model", unet=unet, grad_sample_mode="folded")


def test_memory_that_does_not_suffice_for_the_trial_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "random_draws", partial(lambda *_, **__: torch.empty(10**15)))
    with pytest.raises(InputError, match="A batch of 10 does not fit into the memory: lower `max_physical_batch_size`"):
        make_trainer(tmp_path / "model")
