"""Which form of a use is cheapest. Choices made here change time and memory, never numbers beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from tacit.uses.formed import formed_at_once


class Asked(StrEnum):
    """What is asked of a use: norm and clipped sum, or in each of two passes one of them."""

    BOTH = "both"
    NORM = "norm"
    SUM = "sum"


class Product(NamedTuple):
    """The sizes of a use that is a sum of outer products.

    Attributes:
        samples: B.
        positions: T.
        inputs: d.
        outputs: p.
        itemsize: bytes of a number, in the norm.
        sharing: how many uses read the same output gradients, whose Gram matrices are formed once.
        asked: what is asked of it.
    """

    samples: int
    positions: int
    inputs: int
    outputs: int
    itemsize: int = 4
    sharing: int = 1
    asked: Asked = Asked.BOTH

    @property
    def whole(self) -> int:
        """Bytes of whole gradients of single samples."""
        return self.samples * self.inputs * self.outputs * self.itemsize

    @property
    def factors(self) -> int:
        """Bytes of inputs and output gradients."""
        return self.samples * self.positions * (self.inputs + self.outputs) * self.itemsize

    @property
    def grams(self) -> int:
        """Bytes of the Gram matrices of both."""
        return 2 * self.samples * self.positions**2 * self.itemsize

    def held(self, factors: int) -> dict[str, int]:
        """What each form takes, in bytes.

        Args:
            factors: what holding inputs and output gradients takes.
        """
        if self.asked is Asked.BOTH:
            return {"gram": factors, "stored": self.whole}
        # They are let go of at once: what counts is what is formed of them.
        some = formed_at_once(self.samples, self.outputs, self.inputs, self.itemsize)
        return {"gram": self.grams, "stored": some * self.whole // self.samples}


MAPPED = 2**25
"""Blocks from so many bytes on the C library (glibc) takes from the system, and gives back, each by itself."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """Arithmetic and memory rates of a device, for choosing between equally exact strategies.

    Attributes:
        flops_per_second: rate of matrix products.
        near_bytes_per_second: rate of reading what a cache holds.
        far_bytes_per_second: rate of reading main memory.
        cache: bytes that a cache holds.
        new_bytes_per_second: rate of writing memory that the system has just given.
    """

    flops_per_second: float = 2e11
    near_bytes_per_second: float = 6e10
    far_bytes_per_second: float = 2e10
    cache: float = 2**22
    new_bytes_per_second: float = 1e10

    def seconds(self, product: Product) -> dict[str, float]:
        """What each strategy takes, from the output gradient to what is asked.

        Storing forms G instead of the ordinary weight gradient, and reads it for norm and sum; large ones lie in memory
        that is mapped anew each time. Gram matrices cost
        ``2·B·T²·(d + p)`` operations on top of the ordinary one. They are written, multiplied, summed in float64, and
        products of narrow matrices run below their rate: together as long as reading the Gram matrices ten times. For a
        norm alone G is formed a few samples at a time, in the cache.
        A clipped sum alone is one product, as in an ordinary backward: nothing is quicker.
        """
        samples, positions, inputs, outputs, itemsize, sharing, asked = product
        ordinary = 2 * samples * positions * inputs * outputs / self.flops_per_second
        grams = 2 * samples * positions**2 * (inputs + outputs / sharing) / self.flops_per_second
        scaled = samples * positions * min(inputs, outputs) * itemsize
        norm = grams + self._moved(samples * positions**2 * itemsize, 10)
        total = ordinary + self._moved(scaled, 2)
        if asked is Asked.NORM:
            return {"gram": norm, "stored": ordinary + product.whole / self.near_bytes_per_second}
        if asked is Asked.SUM:
            return {"gram": total}
        new = product.whole / self.new_bytes_per_second if product.whole >= MAPPED else 0.0
        return {"gram": norm + total, "stored": ordinary + self._moved(product.whole, 2) + new}

    def _moved(self, size: int, times: int) -> float:
        return times * size / (self.near_bytes_per_second if size <= self.cache else self.far_bytes_per_second)


DEFAULT_COSTS = CostModel()
"""For where nothing may be timed."""
