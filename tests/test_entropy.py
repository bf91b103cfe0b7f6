"""Generators filled from the operating system."""

import torch

from tacit.entropy import drawn_key, keyed_generator, system_generator


def numbers(generator: torch.Generator) -> list[int]:
    return torch.empty(700, dtype=torch.int64).random_(generator=generator).tolist()


def test_system_generator_ignores_the_global_seed():
    before = torch.get_rng_state()
    torch.manual_seed(0)
    first = numbers(system_generator())
    torch.manual_seed(0)
    assert numbers(system_generator()) != first
    torch.set_rng_state(before)


def test_torch_keeps_32_bits_of_a_seed():
    # Why system_generator fills the state; should torch change, manual_seed would do.
    short, long = (numbers(torch.Generator().manual_seed(seed)) for seed in (7, 7 + 2**32))
    assert short == long


def test_system_generator_has_more_entropy_than_its_seed(monkeypatch):
    draws = iter([7] + [1] * 624 + [7] + [1] * 623 + [2])
    monkeypatch.setattr("secrets.randbits", lambda _: next(draws))
    assert numbers(system_generator()) != numbers(system_generator())


def test_system_generator_is_uniform():
    words = torch.empty(200_000, dtype=torch.int64).random_(generator=system_generator())
    # Mean of uniforms within 6 standard deviations: 2e-9.
    assert abs((words.double() / 2**63).mean().item() - 0.5) < 6 * (1 / 12 / 200_000) ** 0.5


def test_a_keyed_generator_depends_on_key_and_purpose_alone():
    one, other = bytes(range(32)), bytes(32)
    assert numbers(keyed_generator(one, "a")) == numbers(keyed_generator(one, "a"))
    assert numbers(keyed_generator(one, "a")) != numbers(keyed_generator(one, "b"))
    assert numbers(keyed_generator(one, "a")) != numbers(keyed_generator(other, "a"))


def test_keys_come_from_the_system_or_from_a_given_generator():
    assert drawn_key(None) != drawn_key(None)
    first, again = (drawn_key(torch.Generator().manual_seed(7)) for _ in range(2))
    assert first == again
    assert len(first) == 32
