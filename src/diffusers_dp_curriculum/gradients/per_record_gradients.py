"""The gradient of each record's mean loss over its K noise draws, in two ways that agree.

`"folded"` runs the draws of all records in one pass, with the rules of `folded_layers.py`; it is the fast one.
`"loop"` makes an ordinary backward pass for each record; it is right for any layer, and the other is compared with it.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.func import functional_call

from ..errors import InputError
from .folded_layers import NoRuleError, PerRecordParameter
from .losses import NoiseDraws, denoising_error
from .precision import FULL_PRECISION, Precision
from .trials import on_trial, random_parameters, same_call_tolerance


Gradients = dict[str, torch.Tensor]
GradientsOf = Callable[[NoiseDraws], Gradients]


def per_record_gradients(
    model: torch.nn.Module,
    draws: NoiseDraws,
    mode: str,
    precision: Precision = FULL_PRECISION,
) -> Gradients:
    """The gradient of each record's mean loss over its K draws, for every trainable parameter.

    Args:
        model (`torch.nn.Module`): Called as `model(noisy, timesteps, labels)`, returns an object with `.sample`.
        draws (`NoiseDraws`): The K draws of B records.
        mode (`str`): `"folded"` or `"loop"`, as [`choose_mode`] chooses it for this model.
        precision (`Precision`, *optional*): Autocast and loss scale of the passes.

    Returns:
        `dict[str, torch.Tensor]`: For each parameter's name a tensor of shape `(B, *parameter.shape)` and the
        parameter's type, whatever the type of the pass.
    """
    return {"folded": _folded_gradients, "loop": _loop_gradients}[mode](model, draws, precision)


def _folded_gradients(model: torch.nn.Module, draws: NoiseDraws, precision: Precision) -> Gradients:
    return folded_gradients_of(trainable_parameters(model), model, draws, precision)


class _BothPasses(torch.nn.Module):
    """Forward and backward pass as one call.

    With gradient checkpointing the backward pass computes layers again, for which the stand-ins must still be in
    the model.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(
        self, draws: NoiseDraws, precision: Precision, factor: float, leaves: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        with precision.autocast():
            error = denoising_error(self.model, draws)
        return torch.autograd.grad(error * factor, leaves, allow_unused=True, materialize_grads=True)


def folded_gradients_of(
    parameters: dict[str, torch.Tensor],
    model: torch.nn.Module,
    draws: NoiseDraws,
    precision: Precision,
) -> Gradients:
    """All records in one pass, as a function of the trainable parameters; see `folded_layers.py`."""
    num_records = len(draws.noisy)
    stand_ins = {name: PerRecordParameter.of(name, p, num_records) for name, p in parameters.items()}
    leaves = [stand_in.per_record for stand_in in stand_ins.values()]
    # The mean over B records, times B, is the sum of the records' losses: each leaf gets the gradient of its record.
    inputs = (draws.transpose().flatten(), precision, num_records * precision.loss_scale, leaves)
    # List each place once: a parameter can be in several modules, and a module can have several names. PyTorch would
    # exchange the parameter under each name, and then put back what it found under the last, which is a stand-in.
    names = {parameter: name for name, parameter in trainable_parameters(model).items()}
    both_passes = _BothPasses(model)
    in_place = {
        f"{module_name}.{name}": stand_ins[names[parameter]]
        for module_name, module in both_passes.named_modules()
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if parameter in names
    }
    gradients = functional_call(both_passes, in_place, inputs, tie_weights=False)
    return _unscaled(dict(zip(stand_ins, gradients, strict=True)), precision.loss_scale)


def _unscaled(gradients: Gradients, loss_scale: float) -> Gradients:
    return gradients if loss_scale == 1 else {name: gradient / loss_scale for name, gradient in gradients.items()}


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that DP-SGD trains, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _loop_gradients(model: torch.nn.Module, draws: NoiseDraws, precision: Precision) -> Gradients:
    trainable = trainable_parameters(model)
    gradients = {name: p.new_empty(len(draws.noisy), *p.shape) for name, p in trainable.items()}
    for number in range(len(draws.noisy)):
        with precision.autocast():
            error = denoising_error(model, draws.of_record(number))
        own_gradients = torch.autograd.grad(
            error * precision.loss_scale, trainable.values(), allow_unused=True, materialize_grads=True
        )
        for name, gradient in zip(trainable, own_gradients, strict=True):
            gradients[name][number] = gradient
    return _unscaled(gradients, precision.loss_scale)


# From this many pixels per record on (K x height x width), one record keeps two CPU cores busy (benchmarks/dp_step.py:
# 32 draws of 28x28 do, 8 do not). The loop is then as fast, and needs the memory of one record only.
LOOP_PIXELS = 16_384


def takes_loop(requested: str, noise_multiplicity: int, resolution: int, device: torch.device) -> bool:
    """Whether a run takes the loop for any network."""
    enough_work = device.type == "cpu" and noise_multiplicity * resolution**2 >= LOOP_PIXELS
    return requested == "loop" or (requested == "auto" and enough_work)


def choose_mode(
    model: torch.nn.Module,
    draws: NoiseDraws,
    noise_multiplicity: int,
    requested: str,
    precision: Precision = FULL_PRECISION,
) -> str:
    """Choose the mode for a model: `"folded"` if its rules give the gradients of this model, else `"loop"`.

    On a CPU, `"auto"` is the loop as well if the draws of one record are enough work. The modes are tried under the
    conditions of training, with random parameters.

    Args:
        model (`torch.nn.Module`): The network, which is left as it was.
        draws (`NoiseDraws`): Random draws of a few records.
        noise_multiplicity (`int`): K, draws per record in training.
        requested (`str`): `"auto"`, or the mode to use.
        precision (`Precision`, *optional*): Autocast and loss scale of the passes.

    Raises:
        InputError:
            If `"folded"` is requested and the rules give wrong gradients for this model, or if a record's gradient
            depends on the other records. The message names the parameter.
    """
    by_mode = {
        mode: partial(per_record_gradients, model, mode=mode, precision=precision) for mode in ("folded", "loop")
    }
    mode = "folded"
    if takes_loop(requested, noise_multiplicity, draws.noisy.shape[-1], draws.noisy.device):
        mode = "loop"
    elif reason := difference_from_loop(by_mode["folded"], model, draws, precision):
        if requested == "folded":
            raise InputError(f'`grad_sample_mode` "folded" cannot take this UNet ({reason}): use "loop".')
        mode = "loop"
    check_gradients_stay_apart(by_mode[mode], model, draws)
    return mode


# By how much the modes may differ, relative to the norm of a gradient: by what the type of the passes rounds away. It
# is 16 times the distance from 1 to the next number, which is 2^-7 in bfloat16 and 2^-10 in float16. Measured on the
# networks of tests/gradients/test_per_record_gradients.py, and on one of 28x28 and (32, 64) channels: at most 2.2 times
# that distance in bfloat16, and 4.2 times in float16. Float32 on a GPU counts as TF32, in which convolutions compute
# there with the 10 bits of float16's mantissa. A wrong rule or kernel errs by the norm of the gradient itself.
ROUNDING = 16
LEAST_TOLERANCE = 1e-3
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
NEGLIGIBLE = 1e-3  # of the norm over all parameters; the key bias of attention has no gradient but for rounding


def difference_from_loop(
    gradients_of: GradientsOf,
    model: torch.nn.Module,
    draws: NoiseDraws,
    precision: Precision = FULL_PRECISION,
) -> str | None:
    """Say which parameter's gradients differ from those of an ordinary backward pass per record; None if none do.

    Both are computed in training mode with random parameters, but with dropout layers switched off, since dropout masks
    are drawn for a whole batch. A network that draws random numbers in another way has no gradients to compare, and
    counts as different.

    Args:
        gradients_of (`Callable`): Called with noise draws, returns their per-record gradients.
        model (`torch.nn.Module`): The network, which is left as it was.
        draws (`NoiseDraws`): Random draws, of as many records as `gradients_of` is to be tried with.
        precision (`Precision`, *optional*): Autocast and loss scale of the passes.
    """
    device, count = draws.noisy.device, len(draws.noisy)
    with on_trial(model), random_parameters(model):
        for module in model.modules():
            if isinstance(module, DROPOUT):
                module.eval()
        try:
            found = gradients_of(draws)
        except NoRuleError as error:
            return str(error)
        total = dict.fromkeys(found, 0.0)
        difference = dict.fromkeys(found, 0.0)
        for number in {0, count // 2, count - 1}:  # one at a time, as they take memory
            alone = draws.of_records(torch.tensor([number], device=device))
            expected = _loop_gradients(model, alone, precision)
            if not all(gradient.isfinite().all() for gradient in expected.values()):
                continue  # DP-SGD leaves such a record out
            for name, gradient in expected.items():
                total[name] += gradient.square().sum().item()
                difference[name] += (found[name][number] - gradient[0]).square().sum().item()
    if not any(total.values()):
        return "its gradients are zero or not finite"
    differs = _first_that_differs(difference, total, _rounding(device, precision))
    return None if differs is None else f"{differs}: it gives another gradient than an ordinary backward pass"


def _first_that_differs(difference: dict[str, float], total: dict[str, float], tolerance: float) -> str | None:
    """The first parameter that differs by more than the tolerance, from sums of squares; NaN always differs."""
    negligible = NEGLIGIBLE * sum(total.values()) ** 0.5
    for name in total:
        if not difference[name] ** 0.5 <= tolerance * (total[name] ** 0.5 + negligible):
            return name
    return None


def _rounding(device: torch.device, precision: Precision) -> float:
    with precision.autocast():
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        else:
            dtype = torch.float32 if device.type == "cpu" else torch.float16
    return max(LEAST_TOLERANCE, ROUNDING * torch.finfo(dtype).eps)


def check_gradients_stay_apart(gradients_of: GradientsOf, model: torch.nn.Module, draws: NoiseDraws) -> None:
    """Refuse a network in which the gradient of a record depends on other records.

    DP-SGD clips each record's own gradient, which bounds nothing then. The gradients are computed twice as in training,
    dropout included. For the second time one record is replaced.

    Args:
        gradients_of (`Callable`): Called with noise draws, returns their per-record gradients.
        model (`torch.nn.Module`): The network, which is left as it was.
        draws (`NoiseDraws`): Random draws; a single record passes, since there are no others.

    Raises:
        InputError: If a gradient depends on other records; the message names the parameter.
    """
    device, count = draws.noisy.device, len(draws.noisy)
    if count == 1:
        return
    records = torch.arange(count, device=device)
    kept = records[[0, -1]] if count > 2 else records[:1]
    replaced = torch.where(records == 1, 0, records)

    def gradients_of_kept(draws: NoiseDraws) -> Gradients:
        with on_trial(model), random_parameters(model):
            return {name: gradient[kept] for name, gradient in gradients_of(draws).items()}

    before, after = gradients_of_kept(draws), gradients_of_kept(draws.of_records(replaced))
    total, difference = {}, {}
    for name, gradient in before.items():
        finite = gradient.reshape(len(gradient), -1).isfinite().all(dim=1)
        total[name] = gradient[finite].square().sum().item()
        difference[name] = (after[name][finite] - gradient[finite]).square().sum().item()
    differs = _first_that_differs(difference, total, same_call_tolerance(device))
    if differs is not None:
        raise InputError(
            f"A record's gradient of {differs} depends on the other records of its batch, which DP-SGD cannot bound: "
            "use layers that treat each record alone."
        )
