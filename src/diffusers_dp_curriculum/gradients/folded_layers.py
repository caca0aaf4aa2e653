"""Layer rules that fold the K noise draws of a record before its gradient is formed.

A network's rows are draws: row `k * B + b` is draw k of record b. An ordinary backward pass sums a parameter's gradient
over all rows; Opacus' hooks keep one gradient per row. The rules here sum over the K rows of each record inside the
layer, so that the gradients of B records take B times the parameters' memory and the time of the ordinary pass, for any
K. The mean over draws before clipping is the mechanism of DPDM (Dockhorn et al., TMLR 2023, arXiv:2210.09929).

[`PerRecordParameter`] stands in for a parameter. The functions in `RULES` know how to handle it and any other function
refuses it, so that no use of a parameter is missed.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


class NoRuleError(Exception):
    """A parameter is used in a way that no rule covers."""


class PerRecordParameter(torch.Tensor):
    """A parameter whose gradient is wanted for each of B records.

    It has the parameter's shape and values. Gradients are taken with respect to `per_record`, a leaf of shape
    `(B, *shape)` that repeats the parameter without using its memory B times.
    """

    parameter_name: str
    plain: torch.Tensor
    per_record: torch.Tensor

    @staticmethod
    def of(name: str, parameter: torch.Tensor, num_records: int) -> "PerRecordParameter":
        """Stand in for the parameter called `name` in a pass over the draws of `num_records` records."""
        plain = parameter.detach()
        stand_in = plain.as_subclass(PerRecordParameter)
        stand_in.parameter_name, stand_in.plain = name, plain
        stand_in.per_record = plain.expand(num_records, *plain.shape).requires_grad_()
        return stand_in

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Apply the rule of `func`; a function without a rule may only read plain values (type, shape, ...)."""
        kwargs = kwargs or {}
        if func in RULES and not isinstance(args[0], PerRecordParameter):
            return RULES[func](*args, **kwargs)
        # In the way that PyTorch documents: https://docs.pytorch.org/docs/stable/notes/extending.html#subclassing-torch-tensor
        with torch._C.DisableTorchFunctionSubclass():
            value = func(*args, **kwargs)
        if isinstance(value, torch.Tensor):
            used = [
                value.parameter_name for value in (*args, *kwargs.values()) if isinstance(value, PerRecordParameter)
            ]
            raise NoRuleError(f"{', '.join(used)}: no rule for the function {getattr(func, '__name__', func)}")
        return value


class _Tap(torch.autograd.Function):
    """The identity on a layer's output; its backward pass makes per-record gradients from the output's gradient."""

    @staticmethod
    def forward(ctx, output, inputs, rules, *per_record):
        ctx.save_for_backward(inputs)
        ctx.rules = rules
        ctx.like = [(p.shape, p.dtype) for p in per_record]
        ctx.mark_dirty(output)  # returned itself, not as a view, to which a network could not add in place
        return output

    @staticmethod
    def backward(ctx, grad_output):
        (inputs,) = ctx.saved_tensors
        gradients = [
            rule(inputs, grad_output, shape[0]).reshape(shape).to(dtype)
            for rule, (shape, dtype) in zip(ctx.rules, ctx.like, strict=True)
        ]
        return grad_output, None, None, *gradients


def _plain(parameter: torch.Tensor | None) -> torch.Tensor | None:
    return parameter.plain if isinstance(parameter, PerRecordParameter) else parameter


def _tap(
    output: torch.Tensor, inputs: torch.Tensor, *uses: tuple[torch.Tensor | None, Callable[..., Any]]
) -> torch.Tensor:
    """Attach to a layer's output, for each parameter used in it, the rule `(inputs, grad_output, B) -> gradients`."""
    used = [(parameter, rule) for parameter, rule in uses if isinstance(parameter, PerRecordParameter)]
    return _Tap.apply(output, inputs, [rule for _, rule in used], *(parameter.per_record for parameter, _ in used))


def _sum_positions(rows: torch.Tensor, num_records: int) -> torch.Tensor:
    """`(K * B, channels, ...)` to `(B, channels)`: the sum over draws and positions."""
    # Summing one dimension at a time, the contiguous one first, is several times faster than all at once.
    return _over_positions(rows).view(-1, num_records, rows.shape[1]).sum(0)


def _over_positions(rows: torch.Tensor) -> torch.Tensor:
    """`(rows, channels, ...)` to `(rows, channels)`, summed in float32 whatever the type of the pass."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return rows.flatten(2).sum(2, dtype=dtype) if rows.dim() > 2 else rows.to(dtype)


def _per_record(rows: torch.Tensor, num_records: int) -> torch.Tensor:
    """`(K * B, ..., features)` to `(B, K * ..., features)`."""
    by_draw = rows.reshape(-1, num_records, rows[0].numel())
    return by_draw.transpose(0, 1).reshape(num_records, -1, rows.shape[-1])


def _conv2d(inputs, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if isinstance(padding, str):
        raise NoRuleError("a convolution with padding by name has no rule")
    output = F.conv2d(inputs, _plain(weight), _plain(bias), stride, padding, dilation, groups)

    def weight_rule(inputs, grad_output, num_records):
        # One convolution with one group per record and the draws as its batch; the rows are in that order already. Only
        # the weight's shape is used, so its memory is never touched.
        inputs, grad_output = (
            rows.reshape(-1, num_records * rows.shape[1], *rows.shape[2:]) for rows in (inputs, grad_output)
        )
        shape = inputs.new_empty(num_records * weight.shape[0], *weight.shape[1:])
        pairs = ([n, n] if isinstance(n, int) else n for n in (stride, padding, dilation))
        return torch.ops.aten.convolution_backward(
            grad_output, inputs, shape, None, *pairs, False, [0, 0], groups * num_records, [False, True, False]
        )[1]

    # Autocast computes in the output's type.
    return _tap(
        output,
        inputs.to(output.dtype),
        (weight, weight_rule),
        (bias, lambda _, grad, count: _sum_positions(grad, count)),
    )


def _linear(inputs, weight, bias=None):
    output = F.linear(inputs, _plain(weight), _plain(bias))

    def weight_rule(inputs, grad_output, num_records):
        return _per_record(grad_output, num_records).transpose(1, 2) @ _per_record(inputs, num_records)

    def bias_rule(_, grad_output, num_records):
        return _per_record(grad_output, num_records).sum(1)

    return _tap(output, inputs.to(output.dtype), (weight, weight_rule), (bias, bias_rule))


def _group_norm(inputs, num_groups, weight=None, bias=None, eps=1e-5):
    if inputs.is_cuda and torch.is_autocast_enabled("cuda"):
        inputs = inputs.float()  # what autocast does to `F.group_norm`, but not to the function below
    num_rows, num_channels = inputs.shape[:2]
    output, mean, rstd = torch.native_group_norm(
        inputs := inputs.contiguous(),
        _plain(weight),
        _plain(bias),
        num_rows,
        num_channels,
        inputs[0, 0].numel(),
        num_groups,
        eps,
    )

    def weight_rule(inputs, grad_output, num_records):
        # The sum of grad_output times the normalised inputs, made from two sums as in PyTorch's own kernels.
        mean_c, rstd_c = (n.repeat_interleave(num_channels // num_groups, dim=1).float() for n in (mean, rstd))
        dot, total = (_over_positions(rows) for rows in (grad_output.float() * inputs.float(), grad_output))
        return ((dot - total * mean_c) * rstd_c).view(-1, num_records, num_channels).sum(0)

    return _tap(output, inputs, (weight, weight_rule), (bias, lambda _, grad, count: _sum_positions(grad, count)))


def _layer_norm(inputs, normalized_shape, weight=None, bias=None, eps=1e-5):
    output = F.layer_norm(inputs, normalized_shape, _plain(weight), _plain(bias), eps)

    def per_record(rows, num_records):
        # (K * B, ..., *normalized_shape) to (B, *normalized_shape)
        rows = rows.unflatten(0, (-1, num_records)).transpose(0, 1)
        return rows.reshape(num_records, -1, *normalized_shape).sum(1)

    def weight_rule(inputs, grad_output, num_records):
        return per_record(grad_output * F.layer_norm(inputs, normalized_shape, eps=eps), num_records)

    return _tap(output, inputs, (weight, weight_rule), (bias, lambda _, grad, count: per_record(grad, count)))


def _embedding(indices, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False):
    if padding_idx is not None or max_norm is not None or scale_grad_by_freq or sparse:
        raise NoRuleError(f"{weight.parameter_name}: no rule for the options of its embedding")
    output = F.embedding(indices, weight.plain)

    def weight_rule(indices, grad_output, num_records):
        records = torch.arange(len(indices), device=indices.device) % num_records
        records = records.view(-1, *[1] * (indices.dim() - 1)).expand_as(indices)
        gradients = grad_output.new_zeros(num_records, *weight.shape)
        return gradients.index_put((records, indices), grad_output, accumulate=True)

    return _tap(output, indices, (weight, weight_rule))


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.conv2d: _conv2d,
    F.linear: _linear,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.embedding: _embedding,
}
