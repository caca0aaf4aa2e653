"""The cryptographic noise: its distribution, its keys, and its definition."""

import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats

from diffusers_dp_curriculum.mechanisms import secure_noise
from diffusers_dp_curriculum.mechanisms.secure_noise import secure_normal


def test_is_standard_normal():
    normal = secure_normal((400, 2500))
    assert (normal.shape, normal.dtype) == ((400, 2500), torch.float64)
    assert abs(normal.mean()) < 0.006  # six standard errors
    assert abs(normal.var() - 1) < 0.009
    assert abs((normal**4).mean() - 3) < 0.06
    assert stats.kstest(normal.flatten()[:200_000].numpy(), "norm").pvalue > 1e-6
    assert 4 < normal.abs().max() < 7
    flat = normal.flatten()
    assert abs(torch.corrcoef(torch.stack([flat[1:], flat[:-1]]))[0, 1]) < 0.006


def test_no_two_calls_agree_whatever_the_seed():
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        draws.append(secure_normal((8,)))
    assert not torch.equal(*draws)


def test_every_call_has_a_key_of_its_own(monkeypatch):
    """The nonce has only 8 random bytes, so that the key has to keep others from computing the stream."""
    keys = []
    monkeypatch.setattr(
        secure_noise, "Cipher", lambda algorithm, mode: keys.append(algorithm.key) or Cipher(algorithm, mode)
    )
    for _ in range(20):
        secure_normal((2,))
    assert len(set(keys)) == 20
    columns = zip(*keys, strict=True)  # each byte of the key, over the calls
    assert len(keys[0]) == 32
    assert all(len(set(column)) > 10 for column in columns)


def test_any_shape_and_pieces_of_any_size(monkeypatch):
    assert secure_normal(()).shape == ()
    assert secure_normal((0, 3)).shape == (0, 3)
    monkeypatch.setattr(secure_noise, "VALUES_AT_ONCE", 7)
    pieces = secure_normal((10, 2))
    assert len(pieces.unique()) == 20


def test_is_half_the_sum_of_four_normals_of_the_cipher_stream(monkeypatch):
    """With a fixed key, the numbers are those of the definition."""
    monkeypatch.setattr(secure_noise.os, "urandom", bytes)
    stream = Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), mode=None).encryptor().update(bytes(8 * 8 * 3))
    uniform = (np.frombuffer(stream, dtype=np.uint64) >> np.uint64(11)).astype(float).reshape(2, 4, 3) / 2.0**53
    normals = np.sqrt(-2 * np.log(uniform[0] + 2.0**-53)) * np.cos(2 * math.pi * uniform[1])
    assert secure_normal((3,)).numpy() == pytest.approx(normals.sum(axis=0) / 2, rel=1e-9)


def test_the_largest_uniform_number_gives_no_infinity(monkeypatch):
    for word in (0, 2**64 - 1):
        monkeypatch.setattr(
            secure_noise._ChaCha20Stream, "words", lambda _, count, word=word: np.full(count, word, dtype=np.uint64)
        )
        assert secure_normal((2,)).isfinite().all()
