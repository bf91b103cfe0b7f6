"""Noise for whole sums without Python in between, where Numba and the processor's instructions for AES are there."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tacit.errors import PrivacyError
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
        self._words = self._space(0)

    def _space(self, threads: int) -> Tensor:
        return torch.empty((threads, self._room), dtype=torch.int64, device="cpu")

    def make(self, pieces: Sequence[Piece], threads: int) -> None:
        """Write the noisy sums over the sums. Each piece depends on its number and the key alone.

        Args:
            pieces: those of one release.
            threads: in so many threads.

        Raises:
            PrivacyError: not all were made. What is in the sums has no noise, or has it in part.
        """
        from tacit.mechanisms import native_kernel as kernel

        if len(self._words) < threads:
            self._words = self._space(threads)
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
        needed = (order, sizes, nonces, scales, self._keys, self._words, pieces)
        team.run(kernel.work(moving), order.ctypes.data, threads, needed)
        if order[kernel.DONE] != len(pieces):
            raise PrivacyError(
                f"noise was made for {order[kernel.DONE]} of {len(pieces)} parts of a release: its gradients must not "
                "be used, and are not stepped. Set NUMBA_DISABLE_JIT=1: torch then makes the noise."
            )


def _size(piece: Piece) -> tuple[int, int, int]:
    values, move = piece.rounding.values, piece.rounding.move
    for each in (values,) if move is None else (values, move.weights):
        if each.dtype != torch.float32 or each.device.type != "cpu" or not each.is_contiguous():
            raise TypeError(f"the kernel writes float32 side by side on the CPU, not {each.dtype} on {each.device}")
        if not 0 <= piece.start <= piece.start + piece.count <= each.numel():
            raise IndexError(f"{piece.count} numbers from {piece.start} on are not within {each.numel()}")
    before = piece.start * values.element_size()
    return values.data_ptr() + before, piece.count, 0 if move is None else move.weights.data_ptr() + before


def _scale(piece: Piece) -> tuple[float, float, float, float]:
    rounding = piece.rounding
    return piece.deviation, rounding.into, rounding.back, 0.0 if rounding.move is None else -rounding.move.rate


def can_make(rounding: Rounding, moving: bool) -> bool:
    """Whether the kernel is for such sums, and goes here, be it that some of a release move weights."""
    return rounding.can_be_fused and rounding.values.dtype == torch.float32 and goes(moving)


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
    key, number, count, deviation = secrets.token_bytes(16), secrets.randbits(95), 5002, 2.0**20
    # Whatever types and devices are the default.
    moved, as_torch = (torch.linspace(-1, 1, count, dtype=torch.float32, device="cpu") for _ in range(2))
    found, wanted = (
        Rounding(torch.zeros(count, dtype=torch.float32, device="cpu"), into=1.0, back=2.0**-20, move=move)
        for move in (Move(moved, _RATE) if moving else None, None)
    )
    release, half = compiled(), count // 2
    if release is None:
        return "there is no other to compare it with"
    pieces = [Piece(found, part * half, half, deviation, number + part) for part in range(2)]
    Native(key, half).make(pieces, min(2, torch.get_num_threads()))
    for piece in pieces:
        words = Keystream(key).block(piece.number, (half + 1) // 2)
        wanted.fused(release, words, slice(piece.start, piece.start + half), deviation)
    if not wanted.values.any() or not torch.equal(found.values, wanted.values):
        return "its words are not those of AES, or its noise is rounded otherwise"
    as_torch.add_(found.values, alpha=-_RATE)
    return "" if torch.equal(moved, as_torch) or not moving else "it moves weights otherwise than torch"
