"""Noise for whole sums without Python in between, where Numba and the processor's instructions for AES are there."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from tacit.mechanisms import team
from tacit.mechanisms.fused import Rounding, compiled
from tacit.mechanisms.keystream import BEGINS_AT, Keystream
from tacit.mechanisms.moving import Move

_RATE = 0.1


@dataclass(frozen=True, slots=True)
class Piece:
    """Noise for a part of a sum.

    Attributes:
        rounding: the sum, in float32, and what becomes of it.
        start: where the part begins.
        count: how many numbers it has.
        deviation: of the noise.
        number: of the keystream's block.
    """

    rounding: Rounding
    start: int
    count: int
    deviation: float
    number: int


class Native:
    """Makes noise with one key.

    Args:
        key: 16 bytes.
        longest: so many numbers a piece has at most.
    """

    def __init__(self, key: bytes, longest: int) -> None:
        from tacit.mechanisms.aes_kernel import GROUP, lanes, round_keys

        self._keys = round_keys(key, lanes())
        self._room = longest + 2 * GROUP
        self._words = torch.empty((0, self._room), dtype=torch.int64)

    def make(self, pieces: Sequence[Piece], threads: int) -> None:
        """Write the noisy sums over the sums. Each piece depends on its number and the key alone.

        Args:
            pieces: those of one release.
            threads: in so many threads.
        """
        from tacit.mechanisms import native_kernel as kernel

        if len(self._words) < threads:
            self._words = torch.empty((threads, self._room), dtype=torch.int64)
        sizes = np.array([_size(piece) for piece in pieces], dtype=np.int64)
        nonces = np.frombuffer(b"".join(piece.number.to_bytes(12, "big") for piece in pieces), dtype=np.int32)
        scales = np.array([_scale(piece) for piece in pieces])
        order = np.zeros(kernel.LENGTH, dtype=np.int64)
        order[kernel.PARTS] = len(pieces)
        order[kernel.ROOM] = self._room
        order[kernel.BEGINS_AT] = BEGINS_AT
        order[kernel.WORDS] = self._words.data_ptr()
        for place, table in (
            (kernel.SIZES, sizes),
            (kernel.NONCES, nonces),
            (kernel.SCALES, scales),
            (kernel.KEYS, self._keys),
        ):
            order[place] = table.ctypes.data
        moving = any(piece.rounding.move is not None for piece in pieces)
        team.run(kernel.work(moving), order.ctypes.data, threads)


def _size(piece: Piece) -> tuple[int, int, int]:
    values, move = piece.rounding.values, piece.rounding.move
    before = piece.start * values.element_size()
    return values.data_ptr() + before, piece.count, 0 if move is None else move.weights.data_ptr() + before


def _scale(piece: Piece) -> tuple[float, float, float, float]:
    rounding = piece.rounding
    return piece.deviation, rounding.into, rounding.back, 0.0 if rounding.move is None else -rounding.move.rate


def can_make(rounding: Rounding) -> bool:
    """Whether the kernel is for such sums, and goes here."""
    single = rounding.can_be_fused and rounding.values.dtype == torch.float32
    return single and goes(rounding.move is not None)


@cache
def goes(moving: bool) -> bool:
    """Whether the kernel is to be used: its noise is compared with that of the words of `cryptography` before.

    Compiling takes a second.

    Args:
        moving: to move weights, too: to the last bit as torch does.
    """
    try:
        from tacit.mechanisms.aes_kernel import lanes

        if not lanes():
            return False
        reason = _fault(moving)
    except Exception as error:  # noqa: BLE001  whatever it is: there is another way
        reason = f"{type(error).__name__}: {error}"
    if reason:
        warnings.warn(f"noise takes longer, as Numba's kernel for AES does not go here ({reason}).", stacklevel=2)
    return not reason


def _fault(moving: bool) -> str:
    """What is wrong with noise of a random key, beside that made from the library's words, in words."""
    key, number, count, deviation = secrets.token_bytes(16), secrets.randbits(96), 5001, 2.0**20
    moved, as_torch = (torch.linspace(-1, 1, count) for _ in range(2))
    found, wanted = (
        Rounding(torch.zeros(count), into=1.0, back=2.0**-20, move=move)
        for move in (Move(moved, _RATE) if moving else None, None)
    )
    Native(key, count).make([Piece(found, 0, count, deviation, number)], 1)
    release = compiled()
    if release is None:
        return "there is no other to compare it with"
    words = Keystream(key).block(number, (count + 1) // 2)
    wanted.fused(release, words, slice(0, count), deviation)
    if not wanted.values.any() or (found.values - wanted.values).abs().max() > 2.0**-19:
        return "its words are not those of AES"
    as_torch.add_(found.values, alpha=-_RATE)
    return "" if torch.equal(moved, as_torch) or not moving else "it moves weights otherwise than torch"
