"""Standard normal numbers from a cryptographic generator, on the CPU.

Words come from AES-128 in counter mode, keyed from the operating system; two of 64 bits become two normal numbers by
Box and Muller's transform in float64 (doi:10.1214/aoms/1177706645): ``r = sqrt(−2 ln((K + ½) / 2⁶³))`` with 63 bits K,
and an angle of 64 bits and the sign of the other word. So numbers reach ``sqrt(2 · 64 ln 2) = 9.4`` standard
deviations, beyond which a true normal lies with a probability of 5e-21.
"""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from tacit.errors import PrivacyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

PAIRS = 2**15
"""Pairs of numbers made at once: what a core's cache holds."""

READY = 2**12
"""Small tensors are served from as many numbers that lie ready."""

# cos(πv/2) and sin(πv/2)/v in v², for |v| ≤ 1: interpolated at Chebyshev's nodes, off by under 4e-16.
_COSINE_SINE = np.array(
    [
        (1.0, 1.5707963267948963),
        (-1.233700550136169, -0.6459640975062232),
        (0.25366950790103104, 0.07969262624568337),
        (-0.02086348076317886, -0.004681754131447062),
        (0.0009192602739434877, 0.0001604411695631063),
        (-2.5202039782228713e-05, -3.5988107063136794e-06),
        (4.7108307433635577e-07, 5.688318064017795e-08),
        (-6.382235924529259e-09, -6.449471237809134e-10),
        (6.3317327178079e-11, 0.0),
    ]
)[:, :, None]

Finish = Callable[[Tensor, slice], None]
"""Is given float64 normals, which it may overwrite, and which part of the whole they are for."""


_Block: TypeAlias = "tuple[int | None, Finish, slice]"
"""The number of a block of a given key, and what to do with it."""


@dataclass(frozen=True, slots=True)
class Job:
    """So many numbers for one tensor."""

    count: int
    finish: Finish


class _Stream:
    """One key, one thread. NumPy's loops are quicker here than torch's, and take no threads of their own."""

    def __init__(self, key: bytes) -> None:
        self._key = algorithms.AES128(key)
        self.go_to(0)
        self._zeros = memoryview(bytes(16 * PAIRS))
        self._raw = bytearray(16 * PAIRS + 15)
        self._words = np.frombuffer(self._raw, dtype=np.int64, count=2 * PAIRS)
        self._floats, self._waves = np.empty(2 * PAIRS), np.empty(2 * PAIRS)
        self._radius, self._square = np.empty(PAIRS), np.empty(PAIRS)
        self._out = np.empty(2 * PAIRS)
        self._ready = torch.empty(0, dtype=torch.float64)

    def go_to(self, number: int) -> None:
        """Go to the block with this number: each has more of the counter than it can use."""
        start = (number * 2 * PAIRS).to_bytes(16, "big")
        self._cipher = Cipher(self._key, modes.CTR(start)).encryptor()

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
        floats, waves, out = (part[: 2 * pairs].reshape(2, pairs) for part in (self._floats, self._waves, self._out))
        radius, square = self._radius[:pairs], self._square[:pairs]
        np.multiply(self._words[: 2 * pairs].reshape(2, pairs), 2.0**-63, out=floats)
        sign, turn = floats
        _radii(sign, radius)
        np.multiply(turn, turn, out=square)
        # The angle πv/2 is in the right half of the circle; the sign of the other word turns half of them to the left.
        cosine, sine = _cosine_sine(square, waves)
        np.copysign(cosine, sign, out=cosine)
        np.multiply(sine, turn, out=sine)
        np.multiply(waves, radius, out=out)
        return torch.from_numpy(self._out[:count])


def _radii(words: Array, out: Array) -> None:
    """``sqrt(−2 ln(K + ½ · 2⁻⁶³))`` with the absolute values K ≤ 1 of signed words."""
    np.abs(words, out=out)
    np.add(out, 2.0**-64, out=out)
    np.log(out, out=out)
    np.multiply(out, -2.0, out=out)
    np.sqrt(out, out=out)


def _cosine_sine(square: Array, out: Array) -> Array:
    """``cos(πv/2)`` and ``sin(πv/2)/v`` of v², (2, n): Horner's rule for both at once.

    Few long calls: two threads that make short ones wait for Python's lock.
    """
    np.multiply(square, _COSINE_SINE[-1], out=out)
    for coefficients in _COSINE_SINE[-2:0:-1]:
        np.add(out, coefficients, out=out)
        np.multiply(out, square, out=out)
    np.add(out, _COSINE_SINE[0], out=out)
    return out


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
                blocks.append((number, job.finish, slice(start, min(start + 2 * PAIRS, job.count))))
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
            number, finish, part = blocks.popleft()
        except IndexError:
            return
        count = part.stop - part.start
        if number is not None:
            stream.go_to(number)
            finish(stream.block(count), part)
            continue
        finish(stream.some(count) if count <= READY else stream.block(count), part)
