"""What the last backward clipped, for the trainer's eyes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, slots=True)
class ClipStats:
    """Statistics of the per-sample gradient norms of one backward.

    These numbers are computed from the private data without noise. They are for the person who trains, to choose the
    clipping bound; publishing them, or choosing by them on the private data, is not covered by epsilon.

    Attributes:
        samples: number of samples in the physical batch (0 for an empty one).
        norms: ``(samples,)``, float64, on the CPU: l2 norms before clipping; NaN or infinite where not finite.
        max_grad_norm: the clipping bound in force: the most that a clipped gradient measures.
        scaled: ``(samples,)``, bool, on the CPU: which samples were scaled down, in any group of parameters.
    """

    samples: int
    norms: Tensor
    max_grad_norm: float
    scaled: Tensor

    def on_cpu(self) -> ClipStats:
        """The same, on the CPU."""
        if self.norms.device.type == "cpu":
            return self
        return replace(self, norms=self.norms.cpu(), scaled=self.scaled.cpu())

    @property
    def finite_norms(self) -> Tensor:
        return self.norms[torch.isfinite(self.norms)]

    @property
    def nonfinite(self) -> int:
        """How many samples were left out because their gradient is not finite."""
        return self.samples - len(self.finite_norms)

    @property
    def fraction_clipped(self) -> float:
        """The fraction of the samples that were scaled down; 0 for an empty batch."""
        return float((self.scaled & torch.isfinite(self.norms)).sum()) / self.samples if self.samples else 0.0

    @property
    def quantiles(self) -> dict[float, float]:
        """Quantiles of the finite norms, from minimum to maximum; empty if there are none."""
        norms = self.finite_norms
        if not len(norms):
            return {}
        points = torch.tensor(QUANTILES, dtype=norms.dtype)
        return dict(zip(QUANTILES, torch.quantile(norms, points).tolist(), strict=True))
