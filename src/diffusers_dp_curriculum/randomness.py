"""Where the randomness of the mechanisms comes from: the operating system, never the training seed."""

import os
import secrets

import numpy as np
import torch


def entropy_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for Poisson sampling and DP noise that nobody can reproduce.

    On the CPU `torch.Generator.manual_seed` keeps only 32 bits of its argument
    (https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/core/MT19937RNGEngine.h, `init_with_uint32`), few
    enough to try them all against released noise. So the whole Mersenne Twister state, 624 words, is filled from the
    operating system's entropy instead. CUDA's Philox takes the 64 bits it is given.
    """
    generator = torch.Generator(device)
    generator.manual_seed(secrets.randbits(63))
    if generator.device.type == "cpu":
        state = generator.get_state().numpy()
        words = np.frombuffer(os.urandom(4 * 624), dtype=np.uint32).astype(np.uint64)
        state[24 : 24 + 8 * 624] = words.view(np.uint8)  # 24 bytes of header, then 624 words of 64 bits, 32 in use
        generator.set_state(torch.from_numpy(state))
    return generator


def reseed_from_entropy() -> None:
    """Make PyTorch's global generators (noise draws, dropout), of every device, unpredictable from here on."""
    torch.manual_seed(secrets.randbits(63))
    torch.set_rng_state(entropy_generator().get_state())
