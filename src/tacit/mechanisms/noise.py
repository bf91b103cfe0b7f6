"""Where noise comes from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tacit.entropy import system_generator


class NoiseSource:
    """Standard normal numbers for the mechanism: from the operating system's entropy, or reproducible.

    Args:
        generator: a generator that makes the noise reproducible, for tests. Whoever knows its seed can subtract
            the noise, so such a run protects nobody; it is on record in ``reproducible``. Without it, a generator
            of its own is seeded from the operating system: ``torch.manual_seed`` has no influence.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.reproducible = generator is not None
        self._given = generator
        self._own: dict[torch.device, torch.Generator] = {}

    @property
    def description(self) -> str:
        if self.reproducible:
            return "a given generator (reproducible: for tests, not for release)"
        return "torch.Generator seeded from the operating system's entropy"

    def normal(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Return independent standard normal numbers in float32."""
        if self._given is not None:
            drawn = torch.randn(shape, generator=self._given, device=self._given.device)
            return drawn.to(device)
        if device not in self._own:
            self._own[device] = system_generator(device)
        return torch.randn(shape, generator=self._own[device], device=device)

    def state_dict(self) -> dict[str, Any]:
        """The given generator's state. A secret generator is never saved: its state would reveal the noise."""
        return {"state": self._given.get_state()} if self._given is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._given is not None and "state" in state:
            self._given.set_state(state["state"])
