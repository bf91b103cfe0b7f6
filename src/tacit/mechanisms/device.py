"""Standard normal numbers from a cryptographic generator on a GPU: ChaCha20, counted on the device.

As in `secure`, two words of 64 bits become two normal numbers. A key is drawn from the operating system for each source
and process, and is used with one nonce and a counter of 64 bits, so that no block comes twice.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from tacit.errors import PrivacyError
from tacit.mechanisms.secure import Job

PAIRS = 2**22
"""Pairs of numbers made at once (64 MiB)."""

READY = 2**14
"""Small tensors are served from as many numbers that lie ready."""

Words = Callable[[Tensor, int, int], Tensor]
"""``words(key, first, blocks)`` → ``(16, blocks)``, int32; see `chacha_kernel.chacha_words`."""


def available(device: torch.device) -> bool:
    """Whether there is a kernel for this device."""
    return device.type == "cuda" and find_spec("triton") is not None


class DeviceNormal:
    """Fills tensors on one device.

    Args:
        device: where the numbers are made.
        words: makes the keystream; by default the Triton kernel.
        key: 32 bytes, for processes that shall all make the same numbers. Such a source cannot be forked.

    Attributes:
        next_block: the number of the next block of the keystream; each is used once.
    """

    def __init__(self, device: torch.device, words: Words | None = None, key: bytes | None = None) -> None:
        self._device = device
        self._given = key
        self._words = words
        self._process = -1
        self._key = torch.empty(0, dtype=torch.int32)
        self.next_block = 0
        self._ready = torch.empty(0, dtype=torch.float64)

    def each(self, jobs: Sequence[Job]) -> None:
        """Call each job's ``finish`` with all of its numbers, a block at a time."""
        self._begin()
        for job in jobs:
            self._one(job)

    def _one(self, job: Job) -> None:
        if job.count <= READY:
            if len(self._ready) < job.count:
                self._ready = self._block(READY)
            found, self._ready = self._ready[: job.count], self._ready[job.count :]
            job.finish(found * job.deviation, slice(0, job.count))  # if it fails, they were handed out all the same
            return
        for start in range(0, job.count, 2 * PAIRS):
            stop = min(start + 2 * PAIRS, job.count)
            job.finish(self._block(stop - start).mul_(job.deviation), slice(start, stop))

    def _begin(self) -> None:
        if self._process != os.getpid():  # a forked process takes a new key
            if self._given is not None and self._process != -1:
                raise PrivacyError("a process that trains together with others was forked: it would add their noise.")
            key = self._given or secrets.token_bytes(32)
            self._key = torch.frombuffer(bytearray(key), dtype=torch.int32).to(self._device)
            self.next_block = 0
            self._ready = torch.empty(0, dtype=torch.float64, device=self._device)
            self._process = os.getpid()  # last, as in `secure`

    def _block(self, count: int) -> Tensor:
        """``count`` fresh numbers. A ChaCha block, 16 words of 32 bits, is four pairs."""
        if self._words is None:
            from tacit.mechanisms.chacha_kernel import chacha_words

            self._words = chacha_words
        blocks = -(-count // 8)
        words = self._words(self._key, self.next_block, blocks).long()
        self.next_block += blocks
        wide = (words[:8] << 32) | (words[8:] & 0xFFFFFFFF)
        bits, turns = wide[:4].flatten(), wide[4:].flatten()
        radius = bits.bitwise_and_(2**63 - 1).double().add_(0.5).mul_(2.0**-63).log_().mul_(-2.0).sqrt_()
        angle = turns.double().mul_(math.pi * 2.0**-63)
        return torch.cat([radius * angle.cos(), radius * angle.sin_()])[:count]
