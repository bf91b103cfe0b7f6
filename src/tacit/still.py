"""Weights stand still between backwards that no step lies between.

Where weights are moved there (sharpness-aware minimization, an inner step), it is by gradients that have no noise: the
next sum depends on every record through the weights as well, which no clipping bounds.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from tacit.errors import PrivacyError


class StillWeights:
    """Refuses a backward if weights were written since an earlier one, and ``step()`` was not called.

    Args:
        weights: the private parameters. What is written past autograd (``.data``, NumPy) is not seen.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = list(weights)
        self._writes: int | None = None

    def check(self) -> None:
        """A backward has run.

        Raises:
            PrivacyError: weights have moved since the first one after a step.
        """
        writes = sum(weight._version for weight in self._weights)
        if self._writes is None:
            self._writes = writes
        if self._writes != writes:
            raise PrivacyError(
                "weights were changed between two backwards, without a step() in between: what moved them (a gradient "
                "without noise, as in sharpness-aware minimization or an inner step) may depend on every record of the "
                "batch, and so would this gradient. Change weights after optimizer.step() only."
            )

    def forget(self) -> None:
        """A step was called: weights may move."""
        self._writes = None
