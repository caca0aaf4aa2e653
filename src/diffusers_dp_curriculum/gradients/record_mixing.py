"""Checks that a network treats each record alone: no layer mixes the records of a batch or keeps anything of them.

If a layer does either, clipped gradients do not bound what one record changes; and what is kept in a buffer would be
published with the weights.
"""

import copy
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves  # PyTorch has no public function for nested values

from ..errors import InputError
from .losses import NoiseDraws, denoising_error
from .precision import FULL_PRECISION, Precision
from .trials import on_trial, randomise_parameters, same_call_tolerance


BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_records_stay_apart(
    model: torch.nn.Module,
    rows: NoiseDraws,
    precision: Precision = FULL_PRECISION,
    backward: bool = True,
) -> None:
    """Refuse a network that mixes records, or that keeps anything of a batch.

    Two copies of the network make passes as in training: in the same mode, on the same device and in the same number
    types. Between two passes one row is replaced, and nothing may change for any other row, forward or backward. A pass
    may not change parameters or buffers either, nor leave a difference between the copies. Dropout has the same mask in
    each pass.

    Layers that affect nothing but the gradients of parameters are left to [`choose_mode`], which compares gradients.

    Args:
        model (`torch.nn.Module`): Called as `model(noisy, timesteps, labels)`, returns an object with `.sample`.
        rows (`NoiseDraws`):
            Random draws with one leading dimension. A single row only shows what is kept between passes.
        precision (`Precision`, *optional*): Autocast and loss scale of the passes.
        backward (`bool`, *optional*, defaults to True):
            Whether to make backward passes as well, which take much of the memory.

    Raises:
        InputError: If the network mixes or keeps records; the message names the layer, buffer or attribute.
    """
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORM) or getattr(module, "track_running_stats", False):
            raise InputError(
                f"The layer {name} ({type(module).__name__}) mixes records or keeps statistics of them, which DP-SGD "
                "cannot bound: use GroupNorm."
            )
    one, two = _copy(model), _copy(model)
    make_pass = partial(_Pass, precision=precision, backward=backward)
    others = [_with_row_replaced(rows, number) for number in range(len(rows.noisy))]
    registered = _registered(one)
    original, passes = make_pass(one, rows), [make_pass(two, others[0])]
    kept = _first_difference(dict(_attributes(one)), dict(_attributes(two)))
    passes += [make_pass(one, other) for other in others[1:]]
    again = make_pass(one, rows)
    if changed := _first_difference(registered, _registered(one)):
        raise InputError(
            f"A pass in training mode changes {changed}, which DP-SGD cannot bound and which would be published: use "
            "layers without statistics or power iteration, such as GroupNorm."
        )
    if kept is not None:
        raise InputError(
            f"The network keeps something of each batch in {kept}, which DP-SGD cannot bound: use layers that keep "
            "nothing between calls."
        )
    if not original.same(again):
        raise InputError(
            "The network's answer to a batch depends on the batches before it, which DP-SGD cannot bound: use layers "
            "that keep nothing between calls."
        )
    for number, other in enumerate(passes):
        original.check_forward(other, number)
    for number, other in enumerate(passes):
        original.check_backward(other, number)


def _first_difference(one: dict[str, object], two: dict[str, object]) -> str | None:
    return next((name for name in one | two if one.get(name) != two.get(name)), None)


def _with_row_replaced(rows: NoiseDraws, number: int) -> NoiseDraws:
    """The same draws with row `number` replaced by a copy of the next row."""
    numbers = torch.arange(len(rows.noisy))
    numbers[number] = (number + 1) % len(numbers)
    return rows.of_records(numbers.to(rows.noisy.device))


def _copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the network for trials, with random parameters that are the same in each copy."""
    try:
        model = copy.deepcopy(model)
    except Exception as error:  # which error it is depends on the type of object
        computed = [
            _join(module_name, name)
            for module_name, module in model.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, torch.Tensor) and value.grad_fn is not None
        ]
        raise InputError(
            f"The network cannot be copied ({type(error).__name__}), as it keeps {', '.join(computed) or 'something'} "
            "between calls: compute it in each call."
        ) from error
    with on_trial(model):
        randomise_parameters(model)
    return model


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


# Identifies a tensor: the module, the number of its call, "input" or "output", and the position there.
Key = tuple[str, int, str, int]


class _Pass:
    """A forward and backward pass that notes what goes through every module, as two numbers per row."""

    def __init__(self, model: torch.nn.Module, rows: NoiseDraws, precision: Precision, backward: bool):
        self.model = model
        self.num_rows = len(rows.noisy)
        self.calls: Counter[str] = Counter()
        self.forward: dict[Key, torch.Tensor] = {}  # in the order in which modules begin and end
        self.backward: dict[Key, torch.Tensor] = {}
        hooks = []
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(partial(self._begin, name), with_kwargs=True))
            hooks.append(module.register_forward_hook(partial(self._end, name)))
        noisy = rows.noisy.clone().requires_grad_(backward)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with on_trial(model), torch.set_grad_enabled(backward):
            with precision.autocast():
                error = denoising_error(model, NoiseDraws(noisy, rows.timesteps, rows.labels, rows.target))
            if backward:  # for parameters as well: some rows, those of labels, lead nowhere else
                scale = self.num_rows * precision.loss_scale
                torch.autograd.grad(error * scale, [noisy, *trainable], allow_unused=True)
        for hook in hooks:
            hook.remove()

    def _begin(self, name: str, module: torch.nn.Module, inputs: Any, options: Any) -> None:
        self.calls[name] += 1
        self._note(name, "input", (inputs, options))

    def _end(self, name: str, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._note(name, "output", getattr(output, "sample", output))

    def _note(self, name: str, side: str, values: Any) -> None:
        for position, value in enumerate(tree_leaves(values)):
            if not isinstance(value, torch.Tensor) or value.shape[:1] != (self.num_rows,):
                continue
            key = (name, self.calls[name], side, position)
            self.forward[key] = _two_numbers(value)
            if value.requires_grad:
                value.register_hook(lambda gradient, key=key: self.backward.update({key: _two_numbers(gradient)}))

    def check_forward(self, other: "_Pass", replaced: int) -> None:
        """Refuse the network if its output in another pass differs for rows that were not replaced."""
        mixed = {key for key in self.forward if self._changed_rows(other, "forward", key) - {replaced}}
        if any(name == "" and side == "output" for name, _, side, _ in mixed):
            for key in self._ended():
                if self._passes_through(key, "output", mixed) and not self._passes_through(key, "input", mixed):
                    raise self._refusal("forward", key[0])

    def check_backward(self, other: "_Pass", replaced: int) -> None:
        """Refuse the network if gradients of tensors made of rows differ for rows that were not replaced."""
        rows = [key for key in self.forward if self._changed_rows(other, "forward", key) == {replaced}]
        mixed = {key for key in rows if self._changed_rows(other, "backward", key) - {replaced}}
        if mixed:
            for key in self._ended():
                inside = any(name == key[0] or name.startswith(f"{key[0]}.") or not key[0] for name, *_ in mixed)
                if inside and not self._passes_through(key, "output", mixed):
                    raise self._refusal("backward", key[0])

    def same(self, other: "_Pass") -> bool:
        """Whether another pass on the same rows had the same result."""
        return not any(
            self._changed_rows(other, way, key)
            for way, keys in (("forward", self.forward), ("backward", self.backward))
            for key in keys
        )

    def _changed_rows(self, other: "_Pass", way: str, key: Key) -> set[int]:
        one, two = getattr(self, way).get(key), getattr(other, way).get(key)
        if one is None or two is None:
            return set() if one is two else set(range(self.num_rows))
        tolerance = same_call_tolerance(one.device) * one.abs().amax(dim=1, keepdim=True)
        same = (one == two) | (one.isfinite() & ((one - two).abs() <= tolerance)) | (one.isnan() & two.isnan())
        return set((~same.all(dim=1)).nonzero().flatten().tolist())

    def _ended(self) -> list[tuple[str, int]]:
        """The calls of all modules, in the order in which they ended: parts of a module come before the module."""
        return list(dict.fromkeys((name, call) for name, call, side, _ in self.forward if side == "output"))

    @staticmethod
    def _passes_through(call: tuple[str, int], side: str, mixed: set[Key]) -> bool:
        return any((*call, side) == key[:3] for key in mixed)

    def _refusal(self, way: str, name: str) -> InputError:
        module = self.model.get_submodule(name)
        layer = f"The layer {name} ({type(module).__name__})" if name else f"The network ({type(module).__name__})"
        return InputError(
            f"{layer} mixes the records of a batch in its {way} pass, which DP-SGD cannot bound: use layers that treat "
            "each record alone."
        )


def _two_numbers(rows: torch.Tensor) -> torch.Tensor:
    """`(n, ...)` to `(n, 2)`: the norm, and the component in a fixed direction, which depends on signs and places."""
    rows = rows.detach().reshape(len(rows), -1).double()
    direction = torch.arange(rows.shape[1], device=rows.device, dtype=rows.dtype).cos()
    return torch.stack([rows.norm(dim=1), (rows * direction).sum(dim=1)], dim=1)


def _registered(model: torch.nn.Module) -> dict[str, object]:
    """Checksums of the parameters, trainable or not, and of the buffers, published or not."""
    return {
        **{f"the parameter {name}": _checksum(value) for name, value in model.named_parameters()},
        **{f"the buffer {name}": _checksum(value) for name, value in model.named_buffers()},
    }


def _attributes(model: torch.nn.Module) -> Iterator[tuple[str, object]]:
    """Everything else in the modules that could come from a batch: tensors as checksums, and numbers."""
    standard_attributes = vars(torch.nn.Module())
    seen = {id(module) for module in model.modules()}
    for module_name, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in standard_attributes:
                yield from _leaves(_join(module_name, name), value, seen)


def _leaves(name: str, value: Any, seen: set[int]) -> Iterator[tuple[str, object]]:
    if isinstance(value, torch.Tensor):
        yield name, _checksum(value)
    elif isinstance(value, np.ndarray):
        yield name, (value.shape, zlib.crc32(value.tobytes()))
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic)):
        yield name, repr(value)
    elif id(value) not in seen and not isinstance(value, (type, ModuleType)):
        seen.add(id(value))
        if isinstance(value, (set, frozenset)):  # their order differs from copy to copy
            yield name, sorted(repr([content for _, content in _leaves("", inner, seen)]) for inner in value)
            return
        if isinstance(value, (list, tuple, deque)):
            parts: Mapping[Any, Any] = dict(enumerate(value))
        else:
            parts = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
        for part, inner in parts.items():
            yield from _leaves(f"{name}.{part}", inner, seen)


def _checksum(tensor: torch.Tensor) -> tuple[object, ...]:
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return tensor.dtype, tensor.shape, zlib.crc32(values)
