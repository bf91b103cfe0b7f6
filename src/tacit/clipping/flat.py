"""Flat clipping: one bound on the whole gradient of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tacit.clipping.base import ClippingPolicy


@dataclass(frozen=True, slots=True)
class FlatClipping(ClippingPolicy):
    """Factor ``min(1, C / ‖g‖)`` with the norm over all parameters (Abadi et al. 2016, arXiv:1607.00133, Alg. 1).

    Attributes:
        max_grad_norm: the bound C.
    """

    max_grad_norm: float

    @property
    def sensitivity(self) -> float:
        return self.max_grad_norm

    @property
    def uniform(self) -> bool:
        return True

    def group(self, name: str) -> str:  # noqa: ARG002  there is one
        return ""

    def factors(self, norms: Tensor, names: Sequence[str]) -> Tensor:  # noqa: ARG002  all alike
        return bounded(norms, self.max_grad_norm).expand_as(norms)


def bounded(norms: Tensor, bound: float) -> Tensor:
    """``min(1, bound / ‖norms[:, b]‖)`` for each sample b: ``(B,)``."""
    total = torch.linalg.vector_norm(norms, dim=0)
    return torch.where(total > bound, bound / total, 1.0)
