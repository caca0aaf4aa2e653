import numpy as np
import torch

from diffusers_dp_curriculum.mechanisms.randomness import MechanismRandomness, entropy_generator


def test_cpu_generators_keep_only_32_bits_of_a_seed():
    """The reason for filling the whole state: if this test fails, a 64-bit seed is enough."""
    draws = [torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + 2**32)]
    assert torch.equal(*draws)


def test_the_whole_state_is_entropy():
    """The state does not follow from a seed of 32 bits."""
    generator = entropy_generator()
    from_its_seed = torch.Generator().manual_seed(generator.initial_seed())
    words = [state.get_state().numpy()[24:].view(np.uint64)[:624] for state in (generator, from_its_seed)]
    assert (words[0] != words[1]).sum() > 600
    assert len(set(words[0].tolist())) > 600


def test_no_two_generators_agree_and_no_seed_matters():
    draws = []
    for _ in range(3):
        torch.manual_seed(0)
        draws.append(torch.randn(8, generator=entropy_generator()))
    assert not any(torch.equal(draws[i], draws[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_draws_are_standard_normal_and_uniform():
    generator = entropy_generator()
    normal = torch.randn(1_000_000, generator=generator, dtype=torch.float64)
    assert abs(normal.mean()) < 0.006  # six standard errors
    assert abs(normal.var() - 1) < 0.009
    assert abs((normal**4).mean() - 3) < 0.06
    uniform = torch.rand(1_000_000, generator=generator)
    assert abs((uniform < 0.17).double().mean() - 0.17) < 0.0023
    assert abs(torch.corrcoef(torch.stack([uniform[1:], uniform[:-1]]))[0, 1]) < 0.006


def test_global_generator_forgets_the_seed():
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        MechanismRandomness().reseed_global()
        draws.append(torch.rand(8))
    assert not torch.equal(*draws)


def test_a_seed_makes_everything_follow_from_it_and_gives_its_reason():
    draws = []
    for _ in range(2):
        randomness = MechanismRandomness(insecure_noise_seed=5)
        generators = randomness.generator(), randomness.generator()
        randomness.reseed_global()
        draws.append([torch.rand(4, generator=generator) for generator in generators] + [torch.rand(4)])
    assert all(torch.equal(one, other) for one, other in zip(*draws, strict=True))
    assert not torch.equal(draws[0][0], draws[0][1])
    assert "can be computed again" in randomness.why_not_private
    assert MechanismRandomness(secure_rng=True).why_not_private is None


def test_with_a_seed_the_noise_follows_from_it_too():
    draws = []
    for _ in range(2):
        randomness = MechanismRandomness(insecure_noise_seed=0)
        draws.append(randomness.normal((4,), randomness.generator()))
    assert torch.equal(*draws)


def test_secure_noise_takes_nothing_from_a_generator():
    generator = torch.Generator().manual_seed(0)
    normal = MechanismRandomness(secure_rng=True).normal((3, 2), generator)
    assert (normal.shape, normal.dtype) == ((3, 2), torch.float64)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())
