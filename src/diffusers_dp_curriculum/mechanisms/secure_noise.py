"""Gaussian noise from a cryptographic generator, safe against attacks on its floating-point representation.

Opacus' own secure mode takes its numbers from `torchcsprng`, which no longer installs
(https://github.com/pytorch/csprng). This is the same defence with the ChaCha20 stream of `cryptography`.
"""

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms


VALUES_AT_ONCE = 2**16  # together with intermediate results they fit into a processor's cache
NORMALS_PER_VALUE = 4


def secure_normal(shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Standard normal numbers, float64 on the CPU, from a new random key of the operating system.

    Each is half the sum of four independent Box-Muller normals. A single normal computed in floating point reveals, by
    the gaps between the values that it can take, the number that it was added to (Mironov 2012); for the sum of four an
    attacker would have to search some 2^159 combinations (Holohan and Braghin 2021, arXiv:2107.10138, section 5.1).

    Args:
        shape (`torch.Size` or `tuple[int, ...]`): The shape of the result.
    """
    values = torch.empty(math.prod(shape), dtype=torch.float64)
    stream = _ChaCha20Stream()
    for piece in values.split(VALUES_AT_ONCE):
        torch.sum(_normals(stream, NORMALS_PER_VALUE * len(piece)).view(NORMALS_PER_VALUE, -1), dim=0, out=piece)
    return (values / NORMALS_PER_VALUE**0.5).view(shape)


class _ChaCha20Stream:
    """Uniform 64-bit words from a key that is used for nothing else."""

    def __init__(self) -> None:
        # 32 bytes of key; 16 bytes of nonce, of which the first count blocks, from zero.
        algorithm = algorithms.ChaCha20(os.urandom(32), bytes(8) + os.urandom(8))
        self._encryptor = Cipher(algorithm, mode=None).encryptor()

    def words(self, count: int) -> np.ndarray:
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype=np.uint64)


def _normals(stream: _ChaCha20Stream, count: int) -> torch.Tensor:
    """Box-Muller normals, each from two uniform 53-bit numbers of its own; the second normal of a pair is not used."""
    first, second = torch.from_numpy((stream.words(2 * count) >> np.uint64(11)).astype(np.float64)).view(2, count)
    # In place, which halves the time. The logarithm is of (0, 1], never of zero.
    radius = first.add_(1).mul_(2.0**-53).log_().mul_(-2).sqrt_()
    return radius.mul_(second.mul_(2 * math.pi * 2.0**-53).cos_())
