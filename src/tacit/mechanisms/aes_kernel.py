"""AES-128 in counter mode by the processor's own instructions (Intel 323641-001): importing it needs Numba.

`cryptography` makes the same words. But it holds Python's lock meanwhile, so that threads wait for each other, and
its OpenSSL uses the wide instructions in Galois/Counter Mode only, and there not on all processors that have them. So
these words are compared with its own before the first is used, see `native`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

Fill = Callable[[Any, Any, Any, int], None]
"""``fill(words, keys, nonce, counter)`` writes the cipher of a counter over ``words`` (n,), int64, from its beginning
and in groups of `GROUP`: what is over at the end is left as it is. ``keys`` is of `round_keys`, and ``nonce`` (3,),
int32, what comes before the 32 bits of the counter, with the most significant byte first."""

GROUP = 32
"""Words made at once, 16 blocks of 128 bits: the instructions take several cycles each, and do not wait for each
other's blocks."""

_ROUNDS = 10
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def lanes() -> int:
    """How many blocks an instruction takes here: 2, 1, or 0 where there are none, or Numba may not use them all."""
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None or not config.ENABLE_AVX:
        return 0
    try:
        has = llvm.get_host_cpu_features()
    except RuntimeError:
        return 0
    if not (has.get("aes") and has.get("avx2")):
        return 0
    return 2 if has.get("vaes") else 1


@cache
def made(wide: int) -> Fill:
    """The kernel for instructions that take so many blocks, 1 or 2."""
    encrypt = _group(wide)

    @njit(nogil=True)
    def fill(words, keys, nonce, counter):
        for place in range(words.shape[0] // GROUP):
            encrypt(words, place * GROUP, keys, nonce, np.int32(counter + place * (GROUP // 2)))

    found: Fill = fill
    return found


def _group(wide: int) -> Any:
    """An intrinsic that encrypts a group of counters: ``(words, at, keys, nonce, counter)``."""
    words, numbers, bytes_ = (ir.VectorType(kind, 128 // kind.width * wide) for kind in (_I64, _I32, _I8))
    suffix = ".256" if wide == 2 else ""

    def generate(context, builder, signature, arguments):
        out, keys, nonce = (
            builder.bitcast(_data(context, builder, signature, arguments, place), kind.as_pointer())
            for place, kind in ((0, _I64), (2, words), (3, _I32))
        )

        def load(pointer, place, align):
            found = builder.load(builder.gep(pointer, [_I64(place)]))
            found.align = align
            return found

        def cipher(name):
            kind = ir.FunctionType(words, [words, words])
            return cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.aesni.{name}{suffix}")

        first = ir.Constant(numbers, [0] * (4 * wide))
        for lane in range(wide):
            parts = [*(load(nonce, place, 4) for place in range(3)), arguments[4]]
            for place, part in enumerate(parts):
                first = builder.insert_element(first, part, _I32(4 * lane + place))
        # The counter is the last word of four, and its most significant byte comes first.
        order = [16 * lane + place for lane in range(wide) for place in (*range(12), 15, 14, 13, 12)]
        shuffle = ir.Constant(ir.VectorType(_I32, 16 * wide), order)
        blocks = []
        for place in range(0, GROUP // 2, wide):
            step = ir.Constant(numbers, [n for lane in range(wide) for n in (0, 0, 0, place + lane)])
            counted = builder.bitcast(builder.add(first, step), bytes_)
            counted = builder.shuffle_vector(counted, ir.Constant(bytes_, ir.Undefined), shuffle)
            blocks.append(builder.xor(builder.bitcast(counted, words), load(keys, 0, 8)))
        for number in range(1, _ROUNDS + 1):
            key = load(keys, number, 8)
            instruction = cipher("aesenclast" if number == _ROUNDS else "aesenc")
            blocks = [builder.call(instruction, [block, key]) for block in blocks]
        out = builder.bitcast(builder.gep(out, [arguments[1]]), words.as_pointer())
        for place, block in enumerate(blocks):
            builder.store(block, builder.gep(out, [_I64(place)])).align = 8
        return context.get_dummy_value()

    def encrypt(_typing, words, _at, keys, nonce, _counter):
        return types.void(words, types.int64, keys, nonce, types.int32), generate

    return intrinsic(encrypt)


def _data(context, builder, signature, arguments, place):
    """Where an array's numbers begin."""
    return arrayobj.make_array(signature.args[place])(context, builder, arguments[place]).data


def round_keys(key: bytes, wide: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The key of each round (FIPS 197, 5.2), once for each block that an instruction takes: ``(11, 2 · wide)``.

    Args:
        key: 16 bytes.
        wide: so many blocks.
    """
    table, constant = _substitution(), 1
    columns = [key[place : place + 4] for place in range(0, 16, 4)]
    for number in range(4, 4 * (_ROUNDS + 1)):
        last = columns[-1]
        if number % 4 == 0:
            turned = [table[byte] for byte in (*last[1:], last[0])]
            last = bytes([turned[0] ^ constant, *turned[1:]])
            constant = _doubled(constant)
        columns.append(bytes(a ^ b for a, b in zip(columns[-4], last, strict=True)))
    each = np.frombuffer(b"".join(columns), dtype=np.int64).reshape(_ROUNDS + 1, 2)
    return np.ascontiguousarray(np.tile(each, (1, wide)))


@cache
def _substitution() -> bytes:
    """FIPS 197, 5.1.1: inverses in GF(2⁸), each bit then added to four others and to a constant."""
    powers = [1]  # of x + 1, which all numbers but 0 are powers of
    while len(powers) < 255:
        powers.append(powers[-1] ^ _doubled(powers[-1]))
    inverse = {0: 0} | {power: powers[-place % 255] for place, power in enumerate(powers)}
    return bytes(_mixed(inverse[number]) for number in range(256))


def _mixed(number: int) -> int:
    twice = number | number << 8
    return (number ^ twice >> 4 ^ twice >> 5 ^ twice >> 6 ^ twice >> 7 ^ 0x63) & 0xFF


def _doubled(number: int) -> int:
    """x times it, modulo x⁸ + x⁴ + x³ + x + 1."""
    return number << 1 ^ (0x11B if number & 0x80 else 0)
