"""Clipped sums of parameters in bfloat16 or float16, kept in float32 until there is noise.

Autograd gives a parameter a gradient of the parameter's own type. Rounded to bfloat16 before there is noise, a sum
moves by up to 2⁻⁸ of itself in each coordinate, and with one sample more it rounds otherwise: the release would move by
more than that sample's bound. So ``.grad`` holds the rounded sum, for whoever looks whether there is one, and the sum
itself is kept here. Noise is added to it, and only what has noise is rounded: that is post-processing.
"""

from __future__ import annotations

from torch import Tensor

from tacit.uses import NARROW


class UnroundedSums:
    """The sums that the gradients of narrow parameters are the roundings of."""

    def __init__(self) -> None:
        self._arriving: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def expect(self, name: str, total: Tensor, rounded: Tensor) -> None:
        """A gate has formed ``total`` and hands autograd ``rounded``, of the parameter's shape and type."""
        if rounded.dtype in NARROW:
            self._arriving[name] = total.reshape(rounded.shape)
        elif self._arriving:
            self._arriving.pop(name, None)

    def arrived(self, name: str, before: Tensor | None) -> None:
        """What was expected is about to be added to ``before``, the gradient so far (None if there is none)."""
        total = self._arriving.pop(name, None) if self._arriving else None
        if total is None:  # the parameter is wide, and may have become so since
            if self._sums:
                self.drop(name)
            return
        known = self._sums.pop(name, None)
        if before is not None:
            # A gradient without a sum is a released one.
            known = before.detach().float() if known is None else known
        self._sums[name] = total if before is None or known is None else known.add_(total)

    def take(self, name: str) -> Tensor | None:
        """Take a sum away; None if the gradient is the sum itself. Its gradient is there, and as it was left."""
        return self._sums.pop(name, None)

    def drop(self, name: str) -> None:
        """The gradient that was the rounding of a sum is no longer there."""
        self._sums.pop(name, None)

    def clear(self) -> None:
        self._arriving.clear()
        self._sums.clear()
