"""Words, noise, rounding and division for many parts by one call, from as many threads as call it: needs Numba.

A thread takes the next part that none has taken, until there are no more. None of them needs Python meanwhile: passing
Python's lock to and fro would wake each on the processor of the other.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from tacit.mechanisms.aes_kernel import GROUP, lanes, made
from tacit.mechanisms.fused_kernel import release

NEXT, SPACES, PARTS, SIZES, NONCES, SCALES, KEYS, WORDS, ROOM, BEGINS_AT = range(10)
"""What stands where in an order (10,), int64.

* ``NEXT``, ``SPACES``: how many parts and how many spaces for words are taken: 0 and 0 at first.
* ``PARTS``: how many there are.
* ``SIZES``: address of ``(parts, 2)``, int64: address of float32 values, and how many.
* ``NONCES``: address of ``(parts, 3)``, int32, and ``KEYS`` of the rounds' keys: see `aes_kernel.Fill`.
* ``SCALES``: address of ``(parts, 3)``, float64: deviation, into, back: see `fused_kernel.release`.
* ``WORDS``: address of ``(threads, ROOM)``, int64: space for each thread.
* ``BEGINS_AT``: the counter of a part's first words.
"""

LENGTH = 10
_WIDE = lanes() or 1
_ROUND_KEYS = 11
_fill = made(_WIDE)


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
def _make(order, part, space):
    size = carray(_whole(order[SIZES] + 16 * part), (2,))
    scale = carray(_double(order[SCALES] + 24 * part), (3,))
    nonce = carray(_narrow(order[NONCES] + 12 * part), (3,))
    keys = carray(_whole(order[KEYS]), (_ROUND_KEYS, 2 * _WIDE))
    words = carray(_whole(order[WORDS] + 8 * order[ROOM] * space), (order[ROOM],))
    count = size[1]
    _fill(words[: (count + GROUP - 1) // GROUP * GROUP], keys, nonce, order[BEGINS_AT])
    release(words[: count + count % 2], carray(_single(size[0]), (count,)), scale[0], scale[1], scale[2])


@cfunc(types.void(types.CPointer(types.int64)))
def work(pointer):
    """Take parts of an order until all are taken."""
    order = carray(pointer, (LENGTH,))
    space = _taken(pointer, SPACES)
    while True:
        part = _taken(pointer, NEXT)
        if part >= order[PARTS]:
            return
        _make(order, part, space)
