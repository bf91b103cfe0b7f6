"""Entropy from the operating system for torch's generators, and what is made of one secret key."""

import hashlib
import secrets
from collections.abc import Sequence

import torch

from tacit.errors import TacitError

KEY_BYTES = 32
_STATE_WORDS = 624  # of mt19937
_STATE_START = 3  # int64 words before them in Generator.get_state(): seed, left/seeded, next


def system_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose whole state comes from the operating system's entropy.

    ``manual_seed`` alone would not do: torch's CPU generator (mt19937) keeps 32 bits of a seed, few
    enough to try out, and amplification by sampling needs a secret draw. So all 624 words of its
    state are filled.

    Raises:
        TacitError: this version of torch lays the state out differently.
    """
    if torch.device(device).type != "cpu":  # counter-based, with a seed of 64 bits
        return torch.Generator(device).manual_seed(secrets.randbits(63))
    return _filled([secrets.randbits(32) for _ in range(_STATE_WORDS + 1)])


def derived(key: bytes, purpose: str, count: int) -> bytes:
    """``count`` bytes that only who knows the key can tell from chance; for another purpose, others.

    SHAKE-256 (FIPS 202) of the key, of 32 bytes, and the purpose.
    """
    assert len(key) == KEY_BYTES
    return hashlib.shake_256(key + purpose.encode()).digest(count)


def keyed_generator(key: bytes, purpose: str) -> torch.Generator:
    """A generator on the CPU that is the same for everybody who knows the key; see `system_generator`."""
    words = derived(key, purpose, 4 * (_STATE_WORDS + 1))
    return _filled([int.from_bytes(words[at : at + 4], "little") for at in range(0, len(words), 4)])


def drawn_key(generator: torch.Generator | None) -> bytes:
    """A key of 32 bytes: from a generator on the CPU or elsewhere, or from the operating system's entropy."""
    if generator is None:
        return secrets.token_bytes(KEY_BYTES)
    drawn = torch.empty(KEY_BYTES, dtype=torch.int64, device=generator.device).random_(256, generator=generator)
    return bytes(drawn.tolist())


def _filled(words: Sequence[int]) -> torch.Generator:
    """A generator with these 32-bit words for its state; the first is a seed that only tells the layout."""
    seed, entropy = words[0], words[1:]
    generator = torch.Generator().manual_seed(seed)
    state = generator.get_state()
    stored = state.view(torch.int64)
    # mt19937's initialisation: word 0 is the seed, word 1 follows from it.
    second = (1812433253 * (seed ^ (seed >> 30)) + 1) & 0xFFFFFFFF
    if stored[_STATE_START : _STATE_START + 2].tolist() != [seed, second]:
        raise TacitError(
            "This version of torch keeps its generator's state in a layout that is not known here, so that "
            "it cannot be filled with entropy and draws might be predictable. Pass "
            "a generator that you seeded in secret, and report this."
        )
    stored[_STATE_START : _STATE_START + _STATE_WORDS] = torch.tensor(entropy, dtype=torch.int64)
    generator.set_state(state)
    return generator
