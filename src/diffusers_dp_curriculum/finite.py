"""Whether a network is made of finite numbers: one whose training has diverged is neither published nor sampled."""

import torch


def is_finite(network: torch.nn.Module) -> bool:
    """Whether all parameters and buffers are finite numbers.

    Args:
        network (`torch.nn.Module`): The network, on any device.
    """
    return bool(finite_numbers(network))


def finite_numbers(network: torch.nn.Module) -> torch.Tensor:
    """The answer of [`is_finite`] as a tensor on the device of the network, for which the CPU need not wait.

    Args:
        network (`torch.nn.Module`): The network, on any device.
    """
    tensors = [tensor.detach() for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]
    # A sum of float32 numbers cannot overflow in float64: it is finite if and only if all of them are.
    sums = [tensor.sum(dtype=torch.float64) for tensor in tensors]
    return torch.stack(sums).isfinite().all() if sums else torch.ones((), dtype=torch.bool)
