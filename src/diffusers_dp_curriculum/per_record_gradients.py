"""The gradient of each record's mean loss over its K noise draws, in two ways that agree.

`"folded"` runs the draws of all records in one pass, with the rules of `folded_layers.py`; it is the fast one.
`"loop"` makes an ordinary backward pass for each record; it is right for any layer, and what the other is held to.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import InputError
from .folded_layers import NoRuleError, PerRecordParameter
from .losses import NoiseDraws, denoising_error


Gradients = dict[str, torch.Tensor]
Autocast = Callable[[], AbstractContextManager[Any]]


def per_record_gradients(
    model: torch.nn.Module,
    draws: NoiseDraws,
    mode: str,
    autocast: Autocast = nullcontext,
    loss_scale: float = 1.0,
) -> Gradients:
    """The gradient of each record's mean loss over its K draws, for every trainable parameter.

    Args:
        model (`torch.nn.Module`): Called as `model(noisy, timesteps, labels)`, answers with `.sample`.
        draws (`NoiseDraws`): The K draws of B records.
        mode (`str`): `"folded"` or `"loop"`, as [`choose_mode`] has it for this model.
        autocast (`Callable`, *optional*): Makes the context of the forward pass.
        loss_scale (`float`, *optional*, defaults to 1.0):
            See [`LOSS_SCALES`]. The gradients are divided by it again, in the parameter's type and before anything is
            clipped, so that it changes nothing but what a pass in a small type can represent.

    Returns:
        `dict[str, torch.Tensor]`: For each parameter's name a tensor of shape `(B, *parameter.shape)` and the
        parameter's type, whatever the type of the pass.
    """
    return {"folded": _folded_gradients, "loop": _loop_gradients}[mode](model, draws, autocast, loss_scale)


# By what the loss is multiplied before the backward pass, by the type of the pass: in fp16 the gradients of activations
# would vanish otherwise. It is fixed: one that is adapted to overflows, as is usual, would depend on the records.
LOSS_SCALES = {"no": 1.0, "bf16": 1.0, "fp16": 1024.0}


def _folded_gradients(
    model: torch.nn.Module, draws: NoiseDraws, autocast: Autocast, loss_scale: float = 1.0
) -> Gradients:
    return folded_gradients_of(trainable_parameters(model), model, draws, autocast, loss_scale)


class _BothPasses(torch.nn.Module):
    """Forward and backward pass as one call.

    With gradient checkpointing the second one computes layers anew, for which the model must have its stand-ins still.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(
        self, draws: NoiseDraws, autocast: Autocast, factor: float, leaves: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        with autocast():
            error = denoising_error(self.model, draws)
        return torch.autograd.grad(error * factor, leaves, allow_unused=True, materialize_grads=True)


def folded_gradients_of(
    parameters: dict[str, torch.Tensor],
    model: torch.nn.Module,
    draws: NoiseDraws,
    autocast: Autocast,
    loss_scale: float = 1.0,
) -> Gradients:
    """All records in one pass, as a function of the trainable parameters; see `folded_layers.py`."""
    num_records = len(draws.noisy)
    stand_ins = {name: PerRecordParameter.of(name, p, num_records) for name, p in parameters.items()}
    leaves = [stand_in.per_record for stand_in in stand_ins.values()]
    # The mean over B records of their means over K draws, times B, is the sum of what each record is differentiated by.
    inputs = (draws.transpose().flatten(), autocast, num_records * loss_scale, leaves)
    in_place = {f"model.{name}": stand_in for name, stand_in in stand_ins.items()}
    gradients = functional_call(_BothPasses(model), in_place, inputs)
    return _unscaled(dict(zip(stand_ins, gradients, strict=True)), loss_scale)


def _unscaled(gradients: Gradients, loss_scale: float) -> Gradients:
    return gradients if loss_scale == 1 else {name: gradient / loss_scale for name, gradient in gradients.items()}


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that DP-SGD trains, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _loop_gradients(
    model: torch.nn.Module, draws: NoiseDraws, autocast: Autocast, loss_scale: float = 1.0
) -> Gradients:
    trainable = trainable_parameters(model)
    gradients = {name: p.new_empty(len(draws.noisy), *p.shape) for name, p in trainable.items()}
    for number in range(len(draws.noisy)):
        with autocast():
            error = denoising_error(model, draws.of_record(number))
        of_record = torch.autograd.grad(
            error * loss_scale, trainable.values(), allow_unused=True, materialize_grads=True
        )
        for name, gradient in zip(trainable, of_record, strict=True):
            gradients[name][number] = gradient
    return _unscaled(gradients, loss_scale)


# From how many pixels of its draws on a record keeps two CPU cores busy alone (benchmarks/dp_step.py: 32 draws of 28x28
# do, 8 do not). The loop is then as fast, and its memory is that of one record.
LOOP_PIXELS = 16_384


def choose_mode(
    model: torch.nn.Module,
    image_shape: tuple[int, int, int],
    conditional: bool,
    noise_multiplicity: int,
    requested: str,
) -> str:
    """The mode for a model: `"folded"` if its rules give this model's gradients, else `"loop"`.

    On a CPU it is also the loop where one record's draws are work enough. Both modes are tried on random numbers, with
    a copy of the model that has random parameters.

    Args:
        model (`torch.nn.Module`): The network.
        image_shape (`tuple[int, int, int]`): Channels, height and width.
        conditional (`bool`): Whether the network takes class labels.
        noise_multiplicity (`int`): K, draws per record.
        requested (`str`): `"auto"`, or a mode to insist on.

    Raises:
        InputError: If `"folded"` is requested and the rules do not hold for this model; the parameter is named.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    pixels = noise_multiplicity * image_shape[1] * image_shape[2]
    if requested == "loop" or (requested == "auto" and on_cpu and pixels >= LOOP_PIXELS):
        return "loop"
    reason = _why_not_folded(model, image_shape, conditional)
    if reason is None:
        return "folded"
    if requested == "folded":
        raise InputError(f'grad_sample_mode "folded" cannot take this UNet ({reason}): use "loop".')
    return "loop"


def _why_not_folded(model: torch.nn.Module, image_shape: tuple[int, int, int], conditional: bool) -> str | None:
    generator = torch.Generator().manual_seed(0)
    model = _with_random_parameters(model, generator)
    shape = (3, 2)  # records, draws: two numbers that a layer could not mistake for each other
    draws = NoiseDraws(
        noisy=torch.randn(*shape, *image_shape, generator=generator),
        timesteps=torch.arange(6).view(shape) * 10,
        labels=torch.arange(6).view(shape) % 2 if conditional else None,
        target=torch.randn(*shape, *image_shape, generator=generator),
    )
    try:
        folded = _folded_gradients(model, draws, nullcontext)
    except NoRuleError as error:
        return str(error)
    expected = _loop_gradients(model, draws, nullcontext)
    total = sum(gradient.square().sum() for gradient in expected.values()).sqrt()
    for name, gradient in expected.items():
        if (folded[name] - gradient).norm() > 1e-3 * gradient.norm() + 1e-6 * total:
            return f"{name}: the rules give another gradient than an ordinary backward pass"
    return None


def check_records_stay_apart(model: torch.nn.Module, image_shape: tuple[int, int, int], conditional: bool) -> None:
    """Refuse a model that mixes records: there a clipped gradient would not bound one record's influence.

    Args:
        model (`torch.nn.Module`): The network.
        image_shape (`tuple[int, int, int]`): Channels, height and width.
        conditional (`bool`): Whether the network takes class labels.

    Raises:
        InputError: If there is batch normalisation, running statistics, or a layer that mixes the batch.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) or getattr(module, "track_running_stats", False):
            raise InputError(
                f"The layer {name} ({type(module).__name__}) mixes records or keeps statistics of them, which DP-SGD "
                "cannot bound: use GroupNorm."
            )
    generator = torch.Generator().manual_seed(0)
    model = _with_random_parameters(model, generator)
    images = torch.randn(3, *image_shape, generator=generator)
    timesteps = torch.full((2,), 10)
    labels = torch.zeros(2, dtype=torch.int64) if conditional else None
    with torch.no_grad():
        one = model(images[[0, 1]], timesteps, labels).sample[0]
        other = model(images[[0, 2]], timesteps, labels).sample[0]
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-4):
        raise InputError(
            "The network's answer for one record depends on the others in its batch, which DP-SGD cannot bound: use "
            "layers that treat each record alone."
        )


def _with_random_parameters(model: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """A copy to try things on: a last layer that is zero when fresh would hide all that is before it."""
    model = copy.deepcopy(model).cpu().eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1, generator=generator)
    return model
