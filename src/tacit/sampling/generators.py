"""Generators of random numbers for drawing indices."""

from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler

from tacit.errors import ConfigurationError


def global_generator() -> torch.Generator:
    """A generator seeded from torch's global one, as RandomSampler makes one for each epoch."""
    return torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))


def user_generator(loader: DataLoader[Any]) -> torch.Generator | None:
    """The generator that the user gave the loader or its sampler, if any.

    Raises:
        ConfigurationError: it does not generate on the CPU.
    """
    generator: torch.Generator | None = loader.generator
    if generator is None and isinstance(loader.sampler, RandomSampler):
        generator = loader.sampler.generator
    if generator is not None:
        check_generator(generator)
    return generator


def check_generator(generator: torch.Generator) -> None:
    """Raise ConfigurationError unless ``generator`` generates on the CPU."""
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise ConfigurationError(
            f"Found generator={generator!r}; indices are drawn on the CPU. Pass torch.Generator() or None."
        )
