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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from tacit.errors import PrivacyError

PAIRS = 2**16
"""Pairs of numbers made at once: what caches hold, and enough for torch to share among its threads."""

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


class _Stream:
    """The numbers of one key."""

    def __init__(self, key: bytes) -> None:
        self._key = algorithms.AES128(key)
        self.go_to(0)
        self._zeros = memoryview(bytes(16 * PAIRS))
        self._raw = bytearray(16 * PAIRS + 15)
        self._words = torch.frombuffer(self._raw, dtype=torch.int64, count=2 * PAIRS)
        self._radii, self._angles, *self._outs = (torch.empty(PAIRS, dtype=torch.float64) for _ in range(4))
        self._ready = torch.empty(0, dtype=torch.float64)

    def go_to(self, number: int) -> None:
        """Go to the block with this number: each has more of the counter than it can use."""
        start = (number * 2 * PAIRS).to_bytes(16, "big")
        self._cipher = Cipher(self._key, modes.CTR(start)).encryptor()

    def some(self, count: int) -> Tensor:
        """``count`` ≤ READY standard normal numbers, which are handed out once."""
        if len(self._ready) < count:
            self._ready = torch.cat(self.block(READY, 1.0))
        found, self._ready = self._ready[:count], self._ready[count:]
        return found

    def block(self, count: int, deviation: float) -> tuple[Tensor, Tensor]:
        """``count`` ≤ 2 · PAIRS normal numbers in two halves, in memory that the next call overwrites."""
        pairs = (count + 1) // 2
        self._cipher.update_into(self._zeros[: 16 * pairs], self._raw)
        words = self._words[: 2 * pairs].view(2, pairs)
        cosine, sine = (out[:pairs] for out in self._outs)
        box_muller(words, deviation, self._radii[:pairs], self._angles[:pairs], cosine, sine)
        return cosine, sine[: count - pairs]


def box_muller(words: Tensor, deviation: float, radii: Tensor, angles: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Turn pairs of random words into pairs of normal numbers.

    All calls are on n numbers, so that a thread of torch's meets in each what it had in the one before.

    Args:
        words: ``(2, n)``, int64: of the first the absolute value K ≤ 2⁶³ is the radius, of the second the angle.
        deviation: of the numbers.
        radii: ``(n,)``, float64: is overwritten, and so is ``angles``.
        angles: likewise.
        cosine: ``(n,)``, float64: one number of each pair.
        sine: likewise: the other.
    """
    # A deviation costs nothing here, and a pass over all numbers anywhere else.
    radii.copy_(words[0]).abs_().add_(0.5).mul_(2.0**-63).log_().mul_(-2.0 * deviation * deviation).sqrt_()
    angles.copy_(words[1]).mul_(math.pi * 2.0**-63)
    torch.cos(angles, out=cosine)
    torch.sin(angles, out=sine)
    cosine.mul_(radii)
    sine.mul_(radii)


class SecureNormal:
    """Fills tensors from one stream. A forked process takes a new key: no two ever share numbers.

    Args:
        key: 16 bytes, for processes that shall all make the same numbers, to the last bit: each block depends on its
            number and the key alone, and is made in one thread. Such a source cannot be forked.

    Attributes:
        next_block: the number of the next block, with a given key; a block is used once.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key
        self.next_block = 0
        self._process = -1
        self._stream: _Stream | None = None

    def each(self, jobs: Sequence[Job]) -> None:
        """Call each job's ``finish`` with all of its numbers, a part at a time."""
        stream = self._begin()
        with _threads(None if self._key is None else 1):
            for job in jobs:
                for start in range(0, job.count, 2 * PAIRS):
                    self._part(stream, job, start, min(2 * PAIRS, job.count - start))

    def _part(self, stream: _Stream, job: Job, start: int, count: int) -> None:
        if self._key is None and count <= READY:
            job.finish(stream.some(count) * job.deviation, slice(start, start + count))
            return
        if self._key is not None:
            stream.go_to(self.next_block)
        self.next_block += 1
        for half in stream.block(count, job.deviation):
            job.finish(half, slice(start, start + len(half)))
            start += len(half)

    def _begin(self) -> _Stream:
        if self._stream is not None and self._process == os.getpid():
            return self._stream
        if self._process != -1 and self._key is not None:
            raise PrivacyError(
                "this process was forked from one that trains together with others, and would add the noise that they "
                "add, too: who has both releases could subtract it. Start processes with spawn, or call "
                "make_private() in each."
            )
        if self._process != -1:  # a forked process has lost torch's threads, and would wait for them for ever
            torch.set_num_threads(1)
        self._process = os.getpid()
        self._stream = _Stream(self._key or secrets.token_bytes(16))
        return self._stream


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """With so many threads of torch's; with as many as there are, if None."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
