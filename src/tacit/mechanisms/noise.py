"""Where noise comes from."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tacit.entropy import derived, system_generator
from tacit.errors import PrivacyError
from tacit.mechanisms.device import DeviceNormal, available
from tacit.mechanisms.fused import FROM, compiled, moves_as_torch
from tacit.mechanisms.native import goes
from tacit.mechanisms.secure import Job, SecureNormal
from tacit.mechanisms.turns import Turns


class NoiseSource:
    """Standard normal numbers for the mechanism: cryptographic, or reproducible.

    Args:
        generator: a generator that makes the noise reproducible, for tests. Whoever knows its seed can subtract
            the noise, so such a run protects nobody; it is on record in ``reproducible``. One on the CPU tells where
            in a cipher's stream each release begins, for noise on all devices. Without it, noise on the CPU comes from
            a cipher keyed by the operating system (`secure`), as on GPUs where Triton is installed (`device`), and
            noise on other devices from torch's generator there, seeded by the operating system:
            ``torch.manual_seed`` has no influence.
        key: a key of 32 bytes that all processes know that hold the same parameters, so that each makes the same noise
            without asking the others. With ``generator`` too, the key came from it, and the noise is reproducible.
        holders: which processes these are, in words.

    Attributes:
        reproducible: a generator was given.
        secure: all noise so far came from a cryptographic generator.
    """

    def __init__(
        self, generator: torch.Generator | None = None, *, key: bytes | None = None, holders: str = "all processes"
    ) -> None:
        self.reproducible = generator is not None
        self.secure = generator is None
        self._given = generator if key is None else None
        self._key = key
        self._holders = holders
        if self._given is None:
            self._secure = SecureNormal(None if key is None else derived(key, "noise on the CPU", 16))
        else:
            self._secure = SecureNormal(bytes(16), public=True)
        self._ciphers: dict[torch.device, DeviceNormal] = {}
        self._own: dict[torch.device, torch.Generator] = {}
        self._handed_on: dict[str, Any] = {}
        self._turns = Turns()

    def __getstate__(self) -> dict[str, Any]:
        raise PrivacyError("a copy of a source of noise would make the same noise again: make another source.")

    @property
    def description(self) -> str:
        if self.reproducible:
            return "a given generator (reproducible: for tests, not for release)"
        shared = "" if self._key is None else f", the same in {self._holders}"
        if self.secure:
            cipher = "ChaCha20" if self._ciphers else "AES-128 in counter mode"
            return f"{cipher}, keyed from the operating system's entropy{shared}"
        return f"torch.Generator seeded from the operating system's entropy (not cryptographic){shared}"

    @property
    def position(self) -> tuple[int, ...]:
        """How much was made of the key so far: equal in processes that make the same noise."""
        return self._secure.next_block, *(cipher.next_block for cipher in self._ciphers.values())

    def prepare(self, tensors: Iterable[Tensor], *, moving: bool = False) -> None:
        """Compile what noise for these tensors will need, so that the first step need not.

        Args:
            tensors: the parameters.
            moving: they may move along with the noise.
        """
        on_cpu = self._given is None or self._given.device.type == "cpu"
        if on_cpu and sum(value.numel() for value in tensors if value.device.type == "cpu") >= FROM:
            kernel = compiled()
            if kernel is not None and not goes(moving) and moving:
                moves_as_torch(kernel, torch.float32)

    def each(self, jobs: Sequence[Job], device: torch.device) -> None:
        """Hand normal numbers in float64, of its deviation, to each job, for the parts of its flattened tensor.

        Threads take turns.
        """
        with self._turns.one():
            self._each(jobs, device)

    def _each(self, jobs: Sequence[Job], device: torch.device) -> None:
        if self._given is not None:
            self._each_given(jobs, device, self._given)
        elif device.type == "cpu":
            self._secure.each(jobs)
        elif available(device):
            self._cipher(device).each(jobs)
        else:
            self.secure = False
            if device not in self._own:
                self._own[device] = self._generator_on(device)
            _drawn(jobs, device, self._own[device])

    def _each_given(self, jobs: Sequence[Job], device: torch.device, generator: torch.Generator) -> None:
        if generator.device.type != "cpu":
            _drawn(jobs, device, generator)
            return
        # So many blocks apart that no two releases meet.
        self._secure.next_block = int(torch.randint(2**63 - 1, (), generator=generator)) << 32
        if device.type == "cpu":
            self._secure.each(jobs)
            return
        for job in jobs:
            out = torch.empty(job.count, dtype=torch.float64)
            self._secure.each([Job(job.count, partial(_keep, out), job.deviation)])
            job.finish(out.to(device), slice(0, job.count))

    def _cipher(self, device: torch.device) -> DeviceNormal:
        if device not in self._ciphers:
            # By the order in which devices are first used: in each process they have other numbers.
            purpose = f"noise on device {len(self._ciphers)}"
            key = None if self._key is None else derived(self._key, purpose, 32)
            self._ciphers[device] = DeviceNormal(device) if key is None else DeviceNormal(device, key=key)
        return self._ciphers[device]

    def normal(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Return independent standard normal numbers in float64."""
        out = torch.empty(shape.numel(), dtype=torch.float64, device=device)
        self.each([Job(shape.numel(), partial(_keep, out))], device)
        return out.view(shape)

    def _generator_on(self, device: torch.device) -> torch.Generator:
        if self._key is None:
            return system_generator(device)
        seed = int.from_bytes(derived(self._key, f"noise of generator {len(self._own)}", 8), "little") >> 1
        return torch.Generator(device).manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """The given generator's state. A secret generator is never saved: its state would reveal the noise.

        One process draws from the generator, several from a key that follows from it. What was drawn in the other way
        is handed on: the run may go on in as many processes as it began in.
        """
        if not self.reproducible:
            return {}
        if self._given is not None:
            return self._handed_on | {"state": self._given.get_state()}
        return self._handed_on | {"block": self._secure.next_block}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise what `load_state_dict` would, and change nothing."""
        if self.reproducible and self._given is None:
            operator.index(state.get("block", 0)).to_bytes(12, "big")
        if self._given is not None and "state" in state:
            self._given.clone_state().set_state(state["state"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not self.reproducible:
            return
        self._handed_on = dict(state)
        if self._given is None and "block" in state:
            self._secure.next_block = state["block"]
        if self._given is not None and "state" in state:
            self._given.set_state(state["state"])


def _drawn(jobs: Sequence[Job], device: torch.device, generator: torch.Generator) -> None:
    for job in jobs:
        drawn = torch.randn(job.count, generator=generator, device=generator.device)
        job.finish(drawn.to(device).double().mul_(job.deviation), slice(0, job.count))


def _keep(out: Tensor, numbers: Tensor, part: slice) -> None:
    out[part].copy_(numbers)
