"""Where noise comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tacit.entropy import system_generator
from tacit.mechanisms.device import DeviceNormal, available
from tacit.mechanisms.secure import Job, SecureNormal


class NoiseSource:
    """Standard normal numbers for the mechanism: cryptographic, or reproducible.

    Args:
        generator: a generator that makes the noise reproducible, for tests. Whoever knows its seed can subtract
            the noise, so such a run protects nobody; it is on record in ``reproducible``. Without it, noise on the
            CPU comes from a cipher keyed by the operating system (`secure`), as on GPUs where Triton is installed
            (`device`), and noise on other devices from torch's generator there, seeded by the operating system:
            ``torch.manual_seed`` has no influence.

    Attributes:
        reproducible: a generator was given.
        secure: all noise so far came from a cryptographic generator.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.reproducible = generator is not None
        self.secure = generator is None
        self._given = generator
        self._secure = SecureNormal()
        self._ciphers: dict[torch.device, DeviceNormal] = {}
        self._own: dict[torch.device, torch.Generator] = {}

    @property
    def description(self) -> str:
        if self.reproducible:
            return "a given generator (reproducible: for tests, not for release)"
        if self.secure:
            cipher = "ChaCha20" if self._ciphers else "AES-128 in counter mode"
            return f"{cipher}, keyed from the operating system's entropy"
        return "torch.Generator seeded from the operating system's entropy (not cryptographic)"

    def each(self, jobs: Sequence[Job], device: torch.device) -> None:
        """Hand normal numbers in float64, of its deviation, to each job, for the parts of its flattened tensor."""
        if self._given is None and device.type == "cpu":
            self._secure.each(jobs)
            return
        if self._given is None and available(device):
            self._ciphers.setdefault(device, DeviceNormal(device)).each(jobs)
            return
        for job in jobs:
            job.finish(self._drawn(job.count, device).double().mul_(job.deviation), slice(0, job.count))

    def normal(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Return independent standard normal numbers in float64."""
        out = torch.empty(shape.numel(), dtype=torch.float64, device=device)
        self.each([Job(shape.numel(), lambda numbers, part: _keep(out[part], numbers))], device)
        return out.view(shape)

    def _drawn(self, count: int, device: torch.device) -> Tensor:
        if self._given is not None:
            drawn = torch.randn(count, generator=self._given, device=self._given.device)
            return drawn.to(device)
        self.secure = False
        if device not in self._own:
            self._own[device] = system_generator(device)
        return torch.randn(count, generator=self._own[device], device=device)

    def state_dict(self) -> dict[str, Any]:
        """The given generator's state. A secret generator is never saved: its state would reveal the noise."""
        return {"state": self._given.get_state()} if self._given is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._given is not None and "state" in state:
            self._given.set_state(state["state"])


def _keep(out: Tensor, numbers: Tensor) -> None:
    out.copy_(numbers)
