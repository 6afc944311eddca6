"""Random numbers by purpose: a stable hash, and no numbers in common."""

from hashlib import sha256

import torch

from pruning.seeding import generator


def test_a_purpose_is_a_seed_by_sha256():
    """The first eight bytes, little-endian, without the highest bit's worth: torch takes seeds below 2^63."""
    seed = sum(byte << (8 * i) for i, byte in enumerate(sha256(b"growth 3 100").digest()[:8])) // 2
    assert generator("growth 3 100").initial_seed() == seed


def test_draws_depend_on_the_purpose_alone():
    torch.manual_seed(0)
    first = torch.rand(64, generator=generator("gates 0 1"))
    torch.manual_seed(1)
    again = torch.rand(64, generator=generator("gates 0 1"))
    assert torch.equal(first, again)
    for purpose in ("gates 0 2", "gates 1 1", "growth 0 1"):
        assert not torch.equal(first, torch.rand(64, generator=generator(purpose)))


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    torch.rand(3, generator=generator("random scores 0"))
    assert torch.equal(torch.random.get_rng_state(), before)
