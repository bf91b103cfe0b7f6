"""Words, noise, rounding and division for many parts by one call, from as many threads as call it: needs Numba.

A thread takes the next part that none has taken, until there are no more. None of them needs Python meanwhile: passing
Python's lock to and fro would wake each on the processor of the other.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from tacit.mechanisms.aes_kernel import GROUP, lanes, made
from tacit.mechanisms.fused_kernel import release

NEXT, SPACES, DONE, PARTS, SIZES, NONCES, SCALES, KEYS, WORDS, ROOM, BEGINS_AT = range(11)
"""What stands where in an order (11,), int64.

* ``NEXT``, ``SPACES``, ``DONE``: how many parts and how many spaces for words are taken, and how many parts are done.
* ``PARTS``: how many there are.
* ``SIZES``: address of ``(parts, 3)``, int64: address of float32 values, how many, and address of the weights that are
  moved by them, or 0.
* ``NONCES``: address of ``(parts, 3)``, int32, and ``KEYS`` of the rounds' keys: see `aes_kernel.Fill`.
* ``SCALES``: address of ``(parts, 4)``, float64: deviation, into, back, minus the rate: see `fused_kernel.release`.
* ``WORDS``: address of ``(threads, ROOM)``, int64: space for each thread.
* ``BEGINS_AT``: the counter of a part's first words.
"""

LENGTH = 11
_WIDE = lanes() or 1
_ROUND_KEYS = 11
_fill = made(_WIDE)
_KEPT: list[Any] = []
"""What is compiled lives as long as it can be called."""


def _pointer(kind: Any) -> Any:
    """An intrinsic: from an address to a pointer."""

    def convert(_typing, _address):
        pointer = types.CPointer(kind)

        def generate(context, builder, _signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(pointer))

        return pointer(types.int64), generate

    return intrinsic(convert)


@intrinsic
def _taken(_typing, _order, _place):
    """Add 1 to what stands there, at once for all threads, and return what stood there."""

    def generate(_context, builder, _signature, arguments):
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", builder.gep(arguments[0], [arguments[1]]), one, "monotonic")

    return types.int64(types.CPointer(types.int64), types.int64), generate


_whole, _narrow, _single, _double = (
    _pointer(kind) for kind in (types.int64, types.int32, types.float32, types.float64)
)


@njit(nogil=True)
def _make(order, part, space, moving):
    size = carray(_whole(order[SIZES] + 24 * part), (3,))
    scale = carray(_double(order[SCALES] + 32 * part), (4,))
    nonce = carray(_narrow(order[NONCES] + 12 * part), (3,))
    keys = carray(_whole(order[KEYS]), (_ROUND_KEYS, 2 * _WIDE))
    space_for_words = carray(_whole(order[WORDS] + 8 * order[ROOM] * space), (order[ROOM],))
    count = size[1]
    _fill(space_for_words[: (count + GROUP - 1) // GROUP * GROUP], keys, nonce, order[BEGINS_AT])
    words, values = space_for_words[: count + count % 2], carray(_single(size[0]), (count,))
    if moving is not None and size[2] != 0:
        weights = carray(_single(size[2]), (count,))
        release(words, values, scale[0], scale[1], scale[2], weights, np.float32(scale[3]))
    else:
        release(words, values, scale[0], scale[1], scale[2])


@cache
def work(moving: bool) -> int:
    """The address of a function of an order, that takes parts of it until all are taken.

    Args:
        moving: some of them move weights.
    """
    # Numba drops what is behind a None: compiling the other half takes another second.
    along = True if moving else None

    @cfunc(types.void(types.CPointer(types.int64)))
    def take(pointer):
        order = carray(pointer, (LENGTH,))
        space = _taken(pointer, SPACES)
        while True:
            part = _taken(pointer, NEXT)
            if part >= order[PARTS]:
                return
            _make(order, part, space, along)
            _taken(pointer, DONE)  # not reached by what fails, of which Numba tells nobody

    _KEPT.append(take)
    found: int = take.address
    return found
