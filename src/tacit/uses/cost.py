"""Which form of a use is cheapest. Choices made here change time and memory, never numbers beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CostModel:
    """Arithmetic and memory rates of a device, for choosing between equally exact strategies.

    Attributes:
        flops_per_second: rate of float32 matrix products.
        bytes_per_second: rate of streaming through memory.
        dense_budget: the most bytes that one use may hold as dense per-sample gradients.
    """

    flops_per_second: float = 2e11
    bytes_per_second: float = 2e10
    dense_budget: float = 2**31

    def stores_outer(
        self, samples: int, positions: int, inputs: int, outputs: int, itemsize: int, *, sharing: int = 1
    ) -> bool:
        """Tell whether to form the dense gradient of an outer-product use instead of Gram matrices.

        ``sharing`` uses read the same output gradients, whose Gram matrices are formed once.

        Storing replaces the weight-gradient product and reads its result twice more; the Gram matrices
        cost ``2·T²·(d + p)`` operations a sample on top of it.
        """
        size = inputs * outputs
        if samples * size * itemsize > self.dense_budget:
            return False
        gram_seconds = 2 * positions**2 * (inputs + outputs / sharing) / self.flops_per_second
        store_seconds = 3 * itemsize * size / self.bytes_per_second
        return gram_seconds > store_seconds


DEFAULT_COSTS = CostModel()
