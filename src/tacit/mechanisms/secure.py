"""Standard normal numbers from a cryptographic generator, on the CPU.

Words come from AES-128 in counter mode, keyed from the operating system; two of 64 bits become two normal numbers by
Box and Muller's transform in float64 (doi:10.1214/aoms/1177706645): ``r = sqrt(−2 ln((K + ½) / 2⁶³))`` with 63 bits K,
and an angle of 64 bits. So numbers reach ``sqrt(2 · 64 ln 2) = 9.4`` standard deviations, beyond which a true normal
lies with a probability of 5e-21.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

PAIRS = 2**16
"""Pairs of numbers made at once: what a core's cache holds."""

READY = 2**12
"""Small tensors are served from as many numbers that lie ready."""

Finish = Callable[[Tensor, slice], None]
"""Is given float64 normals, which it may overwrite, and which part of the whole they are for."""


class _Stream:
    """One key, one thread."""

    def __init__(self) -> None:
        key = algorithms.AES128(secrets.token_bytes(16))
        self._cipher = Cipher(key, modes.CTR(bytes(16))).encryptor()
        self._zeros = memoryview(bytes(16 * PAIRS))
        self._raw = bytearray(16 * PAIRS + 15)
        self._words = torch.frombuffer(self._raw, dtype=torch.int64, count=2 * PAIRS)
        self._radius, self._angle, self._wave = (torch.empty(PAIRS, dtype=torch.float64) for _ in range(3))
        self._out = torch.empty(2 * PAIRS, dtype=torch.float64)
        self._ready = torch.empty(0, dtype=torch.float64)

    def some(self, count: int) -> Tensor:
        """``count`` ≤ READY numbers, which are handed out once."""
        if len(self._ready) < count:
            self._ready = self.block(READY).clone()
        found, self._ready = self._ready[:count], self._ready[count:]
        return found

    def block(self, count: int) -> Tensor:
        """``count`` ≤ 2 · PAIRS numbers, in memory that the next call overwrites."""
        pairs = (count + 1) // 2
        self._cipher.update_into(self._zeros[: 16 * pairs], self._raw)
        bits, turns = self._words[:pairs], self._words[pairs : 2 * pairs]
        radius, angle, wave = self._radius[:pairs], self._angle[:pairs], self._wave[:pairs]
        radius.copy_(bits.bitwise_and_(2**63 - 1)).add_(0.5).mul_(2.0**-63).log_().mul_(-2.0).sqrt_()
        angle.copy_(turns).mul_(math.pi * 2.0**-63)
        torch.mul(radius, torch.cos(angle, out=wave), out=self._out[:pairs])
        torch.mul(radius, torch.sin(angle, out=wave), out=self._out[pairs : 2 * pairs])
        return self._out[:count]


class SecureNormal:
    """Fills tensors from a few streams. A forked process takes new keys: no two ever share numbers."""

    def __init__(self) -> None:
        self._process = -1
        self._streams: list[_Stream] = []
        self._threads: ThreadPoolExecutor | None = None

    def each(self, count: int, finish: Finish) -> None:
        """Call ``finish`` with ``count`` numbers in all, a block at a time, from several threads."""
        self._begin()
        if count <= READY:
            finish(self._streams[0].some(count), slice(0, count))
            return
        blocks = [slice(start, min(start + 2 * PAIRS, count)) for start in range(0, count, 2 * PAIRS)]
        if len(blocks) == 1 or self._threads is None:
            _work(self._streams[0], blocks, finish)
            return
        shares = [blocks[i :: len(self._streams)] for i in range(len(self._streams))]
        done = [
            self._threads.submit(_work, stream, share, finish)
            for stream, share in zip(self._streams, shares, strict=True)
        ]
        for one in done:
            one.result()

    def _begin(self) -> None:
        if self._process == os.getpid():
            return
        if self._process != -1:  # a forked process has lost torch's threads, and would wait for them for ever
            torch.set_num_threads(1)
        self._process = os.getpid()
        count = max(1, torch.get_num_threads())
        self._streams = [_Stream() for _ in range(count)]
        self._threads = None
        if count > 1:
            self._threads = ThreadPoolExecutor(count, "tacit-noise", initializer=_alone)
            for one in [self._threads.submit(torch.get_num_threads) for _ in range(count)]:
                one.result()
            torch.set_num_threads(count)  # what the threads have set for themselves is also the default of new ones


def _alone() -> None:
    """Let this thread's calls run in it alone: all cores are busy with noise."""
    torch.get_num_threads()
    torch.set_num_threads(1)


def _work(stream: _Stream, blocks: list[slice], finish: Finish) -> None:
    for part in blocks:
        finish(stream.block(part.stop - part.start), part)
