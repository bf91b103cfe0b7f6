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
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from tacit.errors import PrivacyError
from tacit.mechanisms.fused import FROM, Kernel, Rounding, kernel
from tacit.mechanisms.keystream import Keystream
from tacit.mechanisms.native import Native, Piece, can_make
from tacit.mechanisms.turns import Turns

PAIRS = 2**16
"""Pairs of numbers made at once by torch: enough for it to share among its threads, whose memory they then stay in."""

KEYED_PAIRS = 3 * 2**13
"""The same with a given key: so few that torch shares nothing, and numbers do not depend on how many threads it has.
Threads of ours make blocks of their own; so they do with the kernel."""

READY = 2**12
"""Small tensors are served from as many numbers that lie ready, where they cannot go along with large ones."""

Finish = Callable[[Tensor, slice], None]
"""Is given float64 normals, which it may overwrite, and which part of the whole they are for. Several threads may call
it at once, for parts that do not overlap."""


@dataclass(frozen=True, slots=True)
class Job:
    """So many numbers for one tensor, of this standard deviation."""

    count: int
    finish: Finish
    deviation: float = 1.0


@dataclass(frozen=True, slots=True)
class _Part:
    """Numbers of one job that come from one block.

    Attributes:
        number: the block's.
    """

    job: Job
    start: int
    count: int
    number: int


def _fusible(job: Job) -> Rounding | None:
    """What the kernel can do for a job, if it can."""
    return job.finish if isinstance(job.finish, Rounding) and job.finish.can_be_fused else None


class _Stream:
    """The numbers of one key, from one thread."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._words = Keystream(key)
        self._native: Native | None = None
        self._spaces = [torch.empty(0, dtype=torch.float64, device="cpu")] * 3

    def make_at_once(self, pieces: Sequence[Piece], threads: int) -> None:
        """Make the numbers of all pieces, from several threads."""
        if self._native is None:
            self._native = Native(self._key, 2 * KEYED_PAIRS)
        self._native.make(pieces, threads)

    def make(self, part: _Part, kernel: Kernel | None) -> None:
        """Make the numbers of a part, and hand them over: in two halves, or as words to the kernel."""
        start, job = part.start, part.job
        rounding = _fusible(job)
        if kernel is not None and rounding is not None:
            words = self._words.block(part.number, (part.count + 1) // 2)
            rounding.fused(kernel, words, slice(start, start + part.count), job.deviation)
            return
        for half in self.block(part.number, part.count, job.deviation):
            job.finish(half, slice(start, start + len(half)))
            start += len(half)

    def block(self, number: int, count: int, deviation: float) -> tuple[Tensor, Tensor]:
        """``count`` normal numbers in two halves, in memory that the next call overwrites."""
        pairs = (count + 1) // 2
        if len(self._spaces[0]) < pairs:
            self._spaces = [torch.empty(pairs, dtype=torch.float64, device="cpu") for _ in range(3)]
        words = self._words.block(number, pairs).view(2, pairs)
        cosine, sine = box_muller(words, deviation, [space[:pairs] for space in self._spaces])
        return cosine, sine[: count - pairs]


def box_muller(words: Tensor, deviation: float, spaces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Turn pairs of random words into pairs of normal numbers.

    Args:
        words: ``(2, n)``, int64: of the first the absolute value K ≤ 2⁶³ is the radius, of the second the angle.
        deviation: of the numbers.
        spaces: three of shape ``(n,)``, float64, to work in.

    Returns:
        One number of each pair, and the other: ``(n,)`` each, in ``spaces``.
    """
    radii, sine, cosine = spaces
    torch.add(_HALF, radii.copy_(words[0]).abs_(), alpha=2.0**-63, out=radii)
    # A deviation costs nothing here, and a pass over all numbers anywhere else.
    radii.log_().mul_(-2.0 * deviation * deviation).sqrt_()
    sine.copy_(words[1]).mul_(math.pi * 2.0**-63)
    torch.cos(sine, out=cosine)
    sine.sin_()
    return cosine.mul_(radii), sine.mul_(radii)


_HALF = torch.tensor(2.0**-64, dtype=torch.float64)
"""Half a step of the radius."""


class SecureNormal:
    """Fills tensors from one stream. A forked process takes a new key, and threads take turns: no two share numbers.

    Args:
        key: 16 bytes, for processes that shall all make the same numbers, to the last bit: each block depends on its
            number and the key alone, and is made in one thread. Such a source cannot be forked,
        public: unless its key is no secret anyway, and the numbers are made to be made again.

    Attributes:
        next_block: the number of the next block; each is used once.
    """

    def __init__(self, key: bytes | None = None, *, public: bool = False) -> None:
        self._key = key
        self._public = public
        self.next_block = 0
        self._process = -1 if key is None else os.getpid()
        self._streams: list[_Stream] = []
        self._ready = torch.empty(0, dtype=torch.float64)
        self._pool: ThreadPoolExecutor | None = None
        self._turns = Turns()

    def each(self, jobs: Sequence[Job]) -> None:
        """Call each job's ``finish`` with all of its numbers, a part at a time, maybe in several threads."""
        with self._turns.one():
            self._each(jobs)

    def _each(self, jobs: Sequence[Job]) -> None:
        self._begin()
        compiled = kernel() if sum(job.count for job in jobs if _fusible(job) is not None) >= FROM else None
        block = 2 * (PAIRS if self._key is None and compiled is None else KEYED_PAIRS)
        parts: deque[_Part] = deque()
        pieces: list[Piece] = []
        moving = any(rounding.move is not None for job in jobs if (rounding := _fusible(job)) is not None)
        for job in jobs:
            rounding = None if compiled is None else _fusible(job)
            direct = rounding if rounding is not None and can_make(rounding, moving) else None
            if direct is None and self._key is None and job.count <= READY:
                job.finish(self._some(job.count) * job.deviation, slice(0, job.count))
                continue
            for start in range(0, job.count, block):
                count, number = min(block, job.count - start), self._number()
                if direct is not None:
                    pieces.append(Piece(direct, start, count, job.deviation, number))
                else:
                    parts.append(_Part(job, start, count, number))
        if pieces:
            self._at_once(pieces)
        # Torch's threads share in its passes over large blocks.
        threads = 1 if self._key is None and compiled is None else min(torch.get_num_threads(), len(parts))
        if threads > 1:
            self._share(parts, threads, compiled)
        elif parts:
            self._work(self._streams[0], parts, compiled)

    def _at_once(self, pieces: Sequence[Piece]) -> None:
        try:
            self._streams[0].make_at_once(pieces, min(torch.get_num_threads(), len(pieces)))
        except BaseException:
            self._streams = [self._new_stream()]  # a thread that was not waited for still uses the other's memory
            raise

    def _share(self, parts: deque[_Part], threads: int, compiled: Kernel | None) -> None:
        self._streams += [self._new_stream() for _ in range(threads - len(self._streams))]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(thread_name_prefix="noise")
        others: list[Future[None]] = []
        try:
            for place in range(1, threads):
                others.append(self._pool.submit(self._work, self._streams[place], parts, compiled))
            self._work(self._streams[0], parts, compiled)
            wait(others)
        except BaseException:
            self._abandon(parts)
            raise
        for each in others:
            each.result()

    def _abandon(self, parts: deque[_Part]) -> None:
        """Stop all threads after a failure, and wait for them: they write into the caller's tensors.

        One that could not be waited for may still use its stream, whose memory must then hold no other words.
        """
        parts.clear()
        pool, self._pool, self._streams = self._pool, None, [self._new_stream()]
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    @staticmethod
    def _work(stream: _Stream, parts: deque[_Part], compiled: Kernel | None) -> None:
        while True:
            try:
                part = parts.popleft()
            except IndexError:  # the others took the last
                return
            stream.make(part, compiled)

    def _some(self, count: int) -> Tensor:
        """``count`` ≤ READY standard normal numbers, which are handed out once."""
        if len(self._ready) < count:
            self._ready = torch.cat(self._streams[0].block(self._number(), READY, 1.0))
        found, self._ready = self._ready[:count], self._ready[count:]
        return found

    def _number(self) -> int:
        self.next_block += 1
        return self.next_block - 1

    def _new_stream(self) -> _Stream:
        return _Stream(self._key or secrets.token_bytes(16))

    def _begin(self) -> None:
        if self._streams and self._process == os.getpid():
            return
        if self._key is not None and not self._public and self._process != os.getpid():
            raise PrivacyError(
                "this process was forked from one that trains together with others, and would add the noise that they "
                "add, too: who has both releases could subtract it. Start processes with spawn, or call "
                "make_private() in each."
            )
        self._streams, self._ready = [self._new_stream()], self._ready[:0]
        self._pool = None  # a forked process has lost its threads
        self._process = os.getpid()  # last: a process whose streams could not be made must not go on with another's
