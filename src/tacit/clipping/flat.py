"""Flat clipping: one bound on the whole gradient of a sample."""

from __future__ import annotations

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

    def factors(self, norms: Tensor) -> Tensor:
        total = torch.linalg.vector_norm(norms, dim=0)
        factor = torch.where(total > self.max_grad_norm, self.max_grad_norm / total, torch.ones_like(total))
        return factor.expand_as(norms)
