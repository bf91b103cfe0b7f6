"""Standard normal numbers from a cryptographic generator, on the CPU.

Words come from AES-128 in counter mode, keyed from the operating system; two of 64 bits become two normal numbers by
Box and Muller's transform in float64 (doi:10.1214/aoms/1177706645): ``r = sqrt(−2 ln((K + ½) / 2⁶³))`` with 63 bits K,
and an angle of 64 bits. So numbers reach ``sqrt(2 · 64 ln 2) = 9.4`` standard
deviations, beyond which a true normal lies with a probability of 5e-21.
"""

from __future__ import annotations

import math
import os
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from tacit.errors import PrivacyError

PAIRS = 2**14
"""Pairs of numbers made at once: what a core's cache holds."""

READY = 2**12
"""Small tensors are served from as many numbers that lie ready."""

Finish = Callable[[Tensor, slice], None]
"""Is given float64 normals, which it may overwrite, and which part of the whole they are for."""


@dataclass(frozen=True, slots=True)
class Job:
    """So many numbers for one tensor, of this standard deviation."""

    count: int
    finish: Finish
    deviation: float = 1.0


_Block: TypeAlias = tuple[int | None, Job, slice]
"""The number of a block of a given key, whose it is, and for which part."""


class _Stream:
    """One key, one thread."""

    def __init__(self, key: bytes) -> None:
        self._key = algorithms.AES128(key)
        self.go_to(0)
        self._zeros = memoryview(bytes(16 * PAIRS))
        self._raw = bytearray(16 * PAIRS + 15)
        self._words = torch.frombuffer(self._raw, dtype=torch.int64, count=2 * PAIRS)
        self._floats = torch.empty(2 * PAIRS, dtype=torch.float64)
        self._out = torch.empty(2 * PAIRS, dtype=torch.float64)
        self._ready = torch.empty(0, dtype=torch.float64)

    def go_to(self, number: int) -> None:
        """Go to the block with this number: each has more of the counter than it can use."""
        start = (number * 2 * PAIRS).to_bytes(16, "big")
        self._cipher = Cipher(self._key, modes.CTR(start)).encryptor()

    def some(self, count: int) -> Tensor:
        """``count`` ≤ READY standard normal numbers, which are handed out once."""
        if len(self._ready) < count:
            self._ready = self.block(READY, 1.0).clone()
        found, self._ready = self._ready[:count], self._ready[count:]
        return found

    def block(self, count: int, deviation: float) -> Tensor:
        """``count`` ≤ 2 · PAIRS normal numbers, in memory that the next call overwrites."""
        pairs = (count + 1) // 2
        self._cipher.update_into(self._zeros[: 16 * pairs], self._raw)
        words, floats, out = (part[: 2 * pairs].view(2, pairs) for part in (self._words, self._floats, self._out))
        box_muller(words, deviation, floats, out)
        return self._out[:count]


def box_muller(words: Tensor, deviation: float, floats: Tensor, out: Tensor) -> None:
    """Turn pairs of random words into pairs of normal numbers.

    Args:
        words: ``(2, n)``, int64: of the first the absolute value K ≤ 2⁶³ is the radius, of the second the angle.
        deviation: of the numbers.
        floats: ``(2, n)``, float64: is overwritten.
        out: ``(2, n)``, float64: the numbers.
    """
    floats.copy_(words)
    radius, angle = floats
    # A fresh deviation costs nothing here, and a pass over all numbers anywhere else.
    radius.abs_().add_(0.5).mul_(2.0**-63).log_().mul_(-2.0 * deviation * deviation).sqrt_()
    angle.mul_(math.pi * 2.0**-63)
    torch.cos(angle, out=out[0])
    torch.sin(angle, out=out[1])
    out.mul_(radius)


class SecureNormal:
    """Fills tensors from a few streams. A forked process takes new keys: no two ever share numbers.

    Args:
        key: 16 bytes, for processes that shall all make the same numbers: then every block has its number, whichever
            thread makes it, and depends on that and the key alone. Such a source cannot be forked.

    Attributes:
        next_block: the number of the next block, with a given key; a block is used once.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key
        self.next_block = 0
        self._process = -1
        self._streams: list[_Stream] = []
        self._threads: ThreadPoolExecutor | None = None

    def each(self, jobs: Sequence[Job]) -> None:
        """Call each job's ``finish`` with all of its numbers, a block at a time, from several threads."""
        self._begin()
        blocks: deque[_Block] = deque()
        for job in jobs:
            for start in range(0, job.count, 2 * PAIRS):
                number = None if self._key is None else self.next_block
                blocks.append((number, job, slice(start, min(start + 2 * PAIRS, job.count))))
                self.next_block += 1
        if self._threads is None or sum(job.count for job in jobs) <= 2 * PAIRS:
            _work(self._streams[0], blocks)
            return
        done = [self._threads.submit(_work, stream, blocks) for stream in self._streams]
        for one in done:
            one.result()

    def _begin(self) -> None:
        if self._process == os.getpid():
            return
        if self._process != -1 and self._key is not None:
            raise PrivacyError(
                "this process was forked from one that trains together with others, and would add the noise that they "
                "add, too: who has both releases could subtract it. Start processes with spawn, or call "
                "make_private() in each."
            )
        if self._process != -1:  # a forked process has lost torch's threads, and would wait for them for ever
            torch.set_num_threads(1)
        self._process = os.getpid()
        count = max(1, torch.get_num_threads())
        self._streams = [_Stream(self._key or secrets.token_bytes(16)) for _ in range(count)]
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


def _work(stream: _Stream, blocks: deque[_Block]) -> None:
    """Take blocks until none is left: the threads share them as they get on."""
    while True:
        try:
            number, job, part = blocks.popleft()
        except IndexError:
            return
        count = part.stop - part.start
        if number is not None:
            stream.go_to(number)
            job.finish(stream.block(count, job.deviation), part)
        elif count <= READY:
            job.finish(stream.some(count) * job.deviation, part)
        else:
            job.finish(stream.block(count, job.deviation), part)
