"""The function that computes a run's per-record gradients, tried on random numbers before any record is read."""

from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend

from ..config import DPCurriculumConfig
from ..errors import InputError
from ..memory import dp_sgd_memory, largest_share
from .compilation import CompiledGradients
from .losses import DenoisingLoss
from .per_record_gradients import (
    GradientsOf,
    check_gradients_stay_apart,
    choose_mode,
    difference_from_loop,
    per_record_gradients,
    takes_loop,
)
from .precision import Precision
from .record_mixing import check_records_stay_apart
from .trials import random_draws


def make_gradients_of(
    unet: torch.nn.Module,
    loss: DenoisingLoss,
    images_shape: tuple[int, int, int, int],
    config: DPCurriculumConfig,
    accelerator: Accelerator,
) -> tuple[str, GradientsOf]:
    """Make the per-record gradient function that the configuration and `accelerate launch --dynamo_backend` ask for.

    The network and the returned function are tried under the conditions of training: on the same device, in the same
    number types, in training mode, compiled or not. No trial has more rows than a pass of training.

    Args:
        unet (`torch.nn.Module`): The network, which is left as it was.
        loss (`DenoisingLoss`): The loss, which makes the noise draws.
        images_shape (`tuple[int, int, int, int]`): The number of units of privacy, then channels, height and width.
        config (`DPCurriculumConfig`): The hyper-parameters.
        accelerator (`Accelerator`): The accelerator of the run, with its device, precision and compiler.

    Returns:
        `tuple[str, Callable]`: The mode, `"folded"` or `"loop"`, and the function from noise draws to gradients.

    Raises:
        InputError:
            If the network mixes or keeps records, does not support what is asked for, or does not fit into the memory.
    """
    precision = Precision.of(accelerator)
    device = accelerator.device
    draws = partial(random_draws, loss, images_shape[1:], device=device)
    on_cpu, multiplicity, requested = device.type == "cpu", config.noise_multiplicity, config.grad_sample_mode
    physical = min(config.max_physical_batch_size, largest_share(config, images_shape[0]))
    rows = multiplicity * (1 if takes_loop(requested, multiplicity, images_shape[-1], device) else physical)
    # A GPU has different kernels for different sizes; on a CPU large sizes would take time and show nothing more.
    sizes = (min(physical, 3), min(multiplicity, 2)) if on_cpu else (physical, multiplicity)
    with dp_sgd_memory(config):
        check_records_stay_apart(unet, draws(min(rows, 3), 1).flatten(), precision)
        if rows == 1:  # one row shows no mixing; two rows without a backward pass take less memory than one row with it
            check_records_stay_apart(unet, draws(2, 1).flatten(), precision, backward=False)
        mode = choose_mode(unet, draws(*sizes), multiplicity, requested, precision)
    dynamo = accelerator.state.dynamo_plugin
    if mode == "loop" or dynamo.backend == DynamoBackend.NO:
        return mode, partial(per_record_gradients, unet, mode=mode, precision=precision)
    if on_cpu and accelerator.mixed_precision != "no":
        # There PyTorch's compiler wrongly assumes that the gradient of group normalisation is float32.
        raise InputError("On a CPU only float32 can be compiled: leave out `dynamo_backend` or `mixed_precision`.")
    if config.gradient_checkpointing:
        raise InputError("A compiled pass chooses by itself what to compute twice: leave out `gradient_checkpointing`.")
    most = min(config.max_physical_batch_size, images_shape[0])
    compiled = CompiledGradients(unet, most, precision, **dynamo.to_kwargs())
    with dp_sgd_memory(config):
        # The function is compiled for this number of draws per record, and fills up missing records.
        if reason := difference_from_loop(compiled, unet, draws(physical, multiplicity), precision):
            raise InputError(f"The compiled gradients are wrong ({reason}): leave out `dynamo_backend`.")
        check_gradients_stay_apart(compiled, unet, draws(physical, multiplicity))
    return mode, compiled
