"""The folded gradients, traced once and compiled: a GPU waits less for fewer, fused kernels."""

from collections.abc import Callable

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from .losses import NoiseDraws
from .per_record_gradients import Gradients, folded_gradients_of, trainable_parameters
from .precision import FULL_PRECISION, Precision
from .trials import seeded


class CompiledGradients:
    """[`per_record_gradients`] of mode `"folded"` through `torch.compile`.

    The first call traces forward and backward pass down to PyTorch's own operators, so that the compiler need not
    understand the rules of `folded_layers.py`, and compiles the trace; it can take minutes. A trace holds what layers
    do in their mode (training or evaluation): other modes get a trace of their own. Fewer than `num_records` records
    are filled up with copies, whose gradients are dropped.

    Args:
        model (`torch.nn.Module`): A network that [`choose_mode`] folds.
        num_records (`int`): Largest number of records per call.
        precision (`Precision`, *optional*): Autocast and loss scale of the passes.
        options: Options of `torch.compile`, such as `backend` and `mode`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        num_records: int,
        precision: Precision = FULL_PRECISION,
        **options: object,
    ):
        self.model = model
        self.num_records = num_records
        self.precision = precision
        self.options = options
        self.compiled: dict[tuple[bool, ...], Callable[..., Gradients]] = {}  # by the modes of all layers

    def __call__(self, draws: NoiseDraws) -> Gradients:
        """Per-record gradients: for each trainable parameter's name a tensor of shape `(B, *parameter.shape)`."""
        count = len(draws.noisy)
        padded = draws.of_records(torch.arange(self.num_records, device=draws.noisy.device) % count)
        parameters = {name: p.detach() for name, p in trainable_parameters(self.model).items()}
        inputs = (parameters, [tensor for tensor in vars(padded).values() if tensor is not None])
        modes = tuple(module.training for module in self.model.modules())
        if modes not in self.compiled:
            trace = make_fx(lambda parameters, tensors: self._gradients(parameters, tensors))  # takes no methods
            with seeded(draws.noisy.device):  # dropout in the trace must not use up the run's random numbers
                self.compiled[modes] = torch.compile(trace(*inputs), **self.options)
        with torch.no_grad():
            gradients = self.compiled[modes](*inputs)
        return {name: gradient[:count] for name, gradient in gradients.items()}

    def _gradients(self, parameters: dict[str, torch.Tensor], tensors: list[torch.Tensor]) -> Gradients:
        noisy, timesteps, *labels, target = tensors
        draws = NoiseDraws(noisy, timesteps, labels[0] if labels else None, target)
        return folded_gradients_of(parameters, self.model, draws, self.precision)
