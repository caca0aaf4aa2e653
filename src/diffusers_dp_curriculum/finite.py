"""Whether a network is made of finite numbers: one whose training has diverged is neither published nor sampled."""

import torch


def is_finite(network: torch.nn.Module) -> bool:
    """Whether all parameters and buffers are finite numbers.

    Args:
        network (`torch.nn.Module`): The network, on any device.
    """
    tensors = [tensor.detach() for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]
    # A sum of float32 numbers cannot overflow in float64: it is finite if and only if all of them are.
    sums = [tensor.sum(dtype=torch.float64) for tensor in tensors]
    return not sums or bool(torch.stack(sums).isfinite().all())
