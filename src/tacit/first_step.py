"""A look at the first step: did it do what private training does?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tacit.distributed import local
from tacit.stats import ClipStats

_PIECE = 2**20


@dataclass(frozen=True, slots=True)
class FirstStep:
    """What the first release and step were seen to do. For the trainer's eyes: these facts are not private.

    Attributes:
        moved: a weight has changed.
        noisy: the released gradient differs from the clipped sum.
        stats: norms and clipping of the last backward before it; None if there was none.
        unused: trainable parameters without a part in the loss.
    """

    moved: bool
    noisy: bool
    stats: ClipStats | None
    unused: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """What is wrong, in words; empty if nothing is."""
        found = []
        if self.noisy and not self.moved:
            found.append(
                "no weight moved in the first step, though the learning rate is not zero: is the optimizer that "
                "make_private() returned the one that is stepped?"
            )
        if self.stats is not None and self.stats.samples:
            if self.stats.nonfinite == self.stats.samples:
                found.append(
                    "no sample of the first batch has a finite gradient, so all of them were left out. With a "
                    "GradScaler, try a smaller init_scale."
                )
            elif not bool(self.stats.finite_norms.any()):
                found.append("all gradients of the first batch are zero: the loss does not depend on the parameters.")
        return found

    @property
    def text(self) -> str:
        """The same in a few lines."""
        lines = [
            "Weights moved." if self.moved else "No weight moved.",
            "Noise was added." if self.noisy else "No noise was added: with noise_multiplier=0 nothing is private.",
        ]
        if self.stats is not None and self.stats.samples:
            share, bound = self.stats.fraction_clipped, self.stats.max_grad_norm
            advice = ""
            if share == 0:
                advice = " The bound is not active: a smaller one would need less noise."
            elif share == 1:
                advice = " Every sample is clipped, as is usual for a small bound."
            lines.append(f"{share:.0%} of {self.stats.samples} samples were above the bound {bound:g}.{advice}")
        if self.unused:
            lines.append(f"Without a part in the loss: {', '.join(self.unused)}.")
        return "\n".join(lines + self.problems)


class Witness:
    """Remembers what the first step starts from: a number for each parameter, and the smallest gradient.

    Of sharded parameters, what this process holds of them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = [p for p in parameters.values() if p.requires_grad]
        self._before = [_fingerprint(p) for p in self._parameters]
        self._smallest = min(self._parameters, key=lambda p: local(p).numel() or math.inf)
        gradient = self._smallest.grad
        self._gradient = None if gradient is None else local(gradient).detach().clone()

    def noisy(self, divisor: float) -> bool:
        """Whether the gradient at hand is more than the clipped sum by a constant."""
        if self._smallest.grad is None:
            return False
        now = local(self._smallest.grad)
        before = torch.zeros_like(now) if self._gradient is None else self._gradient / divisor
        rounding = 4 * torch.finfo(now.dtype).eps  # of a type narrower than float32 the sum was rounded before
        return not torch.allclose(now, before, rtol=max(1e-4, rounding), atol=0.0, equal_nan=True)

    def moved(self) -> bool:
        return any(_fingerprint(p) != before for p, before in zip(self._parameters, self._before, strict=True))


def _fingerprint(value: Tensor) -> tuple[float, float]:
    weights = local(value).detach()
    # In pieces and in their own type: a copy in float64 would be the largest tensor of the step.
    total = math.fsum(float(piece.sum()) for piece in weights.reshape(-1).split(_PIECE))
    return total, float(torch.linalg.vector_norm(weights))
