"""Entropy from the operating system for torch's generators."""

import secrets

import torch

from tacit.errors import TacitError

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
    seed = secrets.randbits(32)
    generator = torch.Generator().manual_seed(seed)
    state = generator.get_state()
    words = state.view(torch.int64)
    # mt19937's initialisation: word 0 is the seed, word 1 follows from it.
    second = (1812433253 * (seed ^ (seed >> 30)) + 1) & 0xFFFFFFFF
    if words[_STATE_START : _STATE_START + 2].tolist() != [seed, second]:
        raise TacitError(
            "This version of torch keeps its generator's state in a layout that is not known here, so that "
            "it cannot be filled with entropy and draws might be predictable. Pass "
            "a generator that you seeded in secret, and report this."
        )
    entropy = [secrets.randbits(32) for _ in range(_STATE_WORDS)]
    words[_STATE_START : _STATE_START + _STATE_WORDS] = torch.tensor(entropy, dtype=torch.int64)
    generator.set_state(state)
    return generator
