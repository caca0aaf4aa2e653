"""Copies from main memory to the device of the network, for which the CPU does not wait."""

import torch


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy a tensor to a device.

    A GPU works through its operations in order while the CPU prepares the next ones. From ordinary memory the CPU would
    wait with each copy until the GPU has done everything before it. Pinned memory can be copied later; PyTorch keeps it
    until then.

    Args:
        tensor (`torch.Tensor`): The tensor, which nobody may change afterwards.
        device (`torch.device` or `str`): The device.
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
