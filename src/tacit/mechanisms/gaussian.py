"""The Gaussian mechanism: the only place where noise is added."""

from __future__ import annotations

import torch
from torch import Tensor

from tacit.mechanisms.noise import NoiseSource


def add_gaussian_noise(total: Tensor, *, std: float, divisor: float, noise: NoiseSource) -> Tensor:
    """Return ``(total + N(0, std²)) / divisor`` (Dwork & Roth 2014, Appendix A), in the type of ``total``.

    Sum, noise and division are done in float32 at least.

    Args:
        total: a clipped sum, of any shape.
        std: standard deviation: noise multiplier × sensitivity.
        divisor: a public constant: the expected batch size, or 1.
        noise: where the noise comes from.
    """
    working = torch.promote_types(total.dtype, torch.float32)
    if std > 0:
        released = noise.normal(total.shape, total.device).to(working).mul_(std).add_(total)
    else:
        released = total.to(working, copy=True)
    return released.div_(divisor).to(total.dtype)
