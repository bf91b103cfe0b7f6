"""Random words from AES-128 in counter mode (NIST SP 800-38A, 6.5)."""

from __future__ import annotations

from functools import cache, partial

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

from tacit.timing import quickest

BEGINS_AT = 2
"""Pieces are counted from here, as in Galois/Counter Mode with a nonce of 96 bits (NIST SP 800-38D, 7.1)."""


class Keystream:
    """The words of one key, a block at a time.

    Args:
        key: 16 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = algorithms.AES128(key)
        self._make_room(0)

    def _make_room(self, pieces: int) -> None:
        self._room = pieces
        self._zeros = memoryview(bytes(16 * pieces))
        self._raw = bytearray(16 * pieces + 15)
        self._words = torch.frombuffer(self._raw, dtype=torch.int64, count=2 * pieces) if pieces else torch.empty(0)

    def block(self, number: int, pieces: int) -> Tensor:
        """The first ``2 · pieces`` words of the block with this number: int64, in memory that the next call overwrites.

        The number is the nonce, and the counter of pieces, which are fewer than 2³², starts anew with each: blocks have
        nothing in common.
        """
        if pieces > self._room:
            self._make_room(pieces)
        encrypt(self._key, number, self._zeros[: 16 * pieces], self._raw, tagged=_tagged_is_quicker())
        return self._words[: 2 * pieces]


def encrypt(key: algorithms.AES128, number: int, text: memoryview, out: bytearray, *, tagged: bool) -> None:
    """Encrypt under a nonce. ``tagged`` asks for Galois/Counter Mode: the same words, and a tag that nobody reads."""
    _cipher(key, number, tagged).update_into(text, out)


def _cipher(key: algorithms.AES128, number: int, tagged: bool) -> CipherContext:
    nonce = number.to_bytes(12, "big")
    if tagged:
        return Cipher(key, modes.GCM(nonce)).encryptor()
    return Cipher(key, modes.CTR(nonce + BEGINS_AT.to_bytes(4, "big"))).encryptor()


@cache
def _tagged_is_quicker() -> bool:
    """OpenSSL uses vector instructions for AES in Galois/Counter Mode only: where there are some, twice as quick."""
    key, text, out = algorithms.AES128(bytes(16)), memoryview(bytes(2**18)), bytearray(2**18 + 15)
    tagged, plain = (quickest(partial(encrypt, key, 0, text, out, tagged=way), 3) for way in (True, False))
    return tagged < plain
