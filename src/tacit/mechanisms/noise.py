"""Where noise comes from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from tacit.entropy import system_generator

STREAMS = 2
"""How many generators fill one large tensor on the CPU: ``Tensor.normal_`` runs on one core and lets others run."""

LARGE = 2**16


class NoiseSource:
    """Standard normal numbers for the mechanism: from the operating system's entropy, or reproducible.

    Args:
        generator: a generator that makes the noise reproducible, for tests. Whoever knows its seed can subtract
            the noise, so such a run protects nobody; it is on record in ``reproducible``. Without it, generators
            of its own are filled from the operating system: ``torch.manual_seed`` has no influence.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.reproducible = generator is not None
        self._given = generator
        self._own: dict[torch.device, list[torch.Generator]] = {}
        self._threads: ThreadPoolExecutor | None = None

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
        generators = self._generators(device)
        out = torch.empty(shape, device=device)
        if len(generators) == 1 or out.numel() < LARGE:
            return out.normal_(generator=generators[0])
        if self._threads is None:
            self._threads = ThreadPoolExecutor(STREAMS, thread_name_prefix="tacit-noise")
        parts = out.view(-1).chunk(len(generators))
        list(self._threads.map(_fill, parts, generators[: len(parts)]))
        return out

    def _generators(self, device: torch.device) -> list[torch.Generator]:
        if device not in self._own:
            count = STREAMS if device.type == "cpu" else 1
            self._own[device] = [system_generator(device) for _ in range(count)]
        return self._own[device]

    def state_dict(self) -> dict[str, Any]:
        """The given generator's state. A secret generator is never saved: its state would reveal the noise."""
        return {"state": self._given.get_state()} if self._given is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._given is not None and "state" in state:
            self._given.set_state(state["state"])


def _fill(part: Tensor, generator: torch.Generator) -> None:
    part.normal_(generator=generator)
