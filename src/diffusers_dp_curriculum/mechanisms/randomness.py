"""Where the randomness of the mechanisms comes from: the operating system, never the training seed."""

import os
import secrets

import numpy as np
import torch

from ..distributed import run_on_main_process
from ..gradients.trials import seed_from
from .secure_noise import secure_normal


class MechanismRandomness:
    """The source of the mechanisms' sampling and noise.

    Samples come from PyTorch's generators, whose state is filled from the operating system's entropy: nobody can
    reproduce the numbers, and they are never released.

    Args:
        secure_rng (`bool`, *optional*, defaults to True):
            Draw the noise from a cryptographic generator, in a way that withstands attacks on its floating-point
            representation (see [`secure_normal`]). Otherwise noise comes from PyTorch's generators as well, which are
            not made to resist an attacker who analyses very many of their numbers.
        insecure_noise_seed (`int`, *optional*):
            For tests only: all samples and noise follow from this seed, whatever `secure_rng` is, so that anybody who
            knows the seed can subtract the noise.

    Examples:
        >>> from diffusers_dp_curriculum import MechanismRandomness
        >>> MechanismRandomness().why_not_private is None
        True
        >>> MechanismRandomness(insecure_noise_seed=0).why_not_private
        'sampling and noise come from a seed (insecure_noise_seed), and can be computed again from it'
    """

    def __init__(self, secure_rng: bool = True, insecure_noise_seed: int | None = None):
        self.secure_rng = secure_rng and insecure_noise_seed is None
        self.insecure_noise_seed = insecure_noise_seed
        self._generators_made = 0

    @property
    def why_not_private(self) -> str | None:
        """The reason why a run with this randomness is not private; None if it is private."""
        if self.insecure_noise_seed is None:
            return None
        return "sampling and noise come from a seed (insecure_noise_seed), and can be computed again from it"

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A new generator, independent of all others.

        Args:
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): The device that it draws on.
        """
        if self.insecure_noise_seed is None:
            return entropy_generator(device)
        self._generators_made += 1
        return torch.Generator(device).manual_seed(1000 * self.insecure_noise_seed + self._generators_made)

    def shared_generator(self) -> torch.Generator:
        """A new generator on the CPU, in the same state on every process."""
        generator = self.generator()
        generator.set_state(run_on_main_process(generator.get_state))
        return generator

    def normal(self, shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Standard normal numbers in float64.

        Args:
            shape (`torch.Size` or `tuple[int, ...]`): The shape of the result.
            generator (`torch.Generator`):
                The source of the numbers, and their device; not used if `secure_rng` is on, which gives numbers on the
                CPU.
        """
        if self.secure_rng:
            return secure_normal(shape)
        return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)

    def reseed_global(self) -> None:
        """Reseed PyTorch's global generators (noise draws, dropout) on every device, so that they are unpredictable."""
        if self.insecure_noise_seed is not None:
            torch.manual_seed(self.insecure_noise_seed)
            return
        torch.manual_seed(secrets.randbits(63))
        torch.set_rng_state(entropy_generator().get_state())

    def seed_draws_insecurely(self, step: int, unit: int) -> None:
        """For tests only: seed the next draws by the seed, the step and the unit, whichever process makes them.

        Args:
            step (`int`): The number of the step.
            unit (`int`): The number of the record or user.
        """
        assert self.insecure_noise_seed is not None
        seed_from(self.insecure_noise_seed, step, unit)


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
