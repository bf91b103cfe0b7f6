"""The Gaussian mechanism: the only place where noise is added."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tacit.mechanisms.noise import NoiseSource

_GRID_BITS = 16


def grid_of(std: float) -> float:
    """The public grid that releases are rounded to: ``2^(⌊log₂ std⌋ − 16)``."""
    return math.ldexp(1.0, math.floor(math.log2(std)) - _GRID_BITS)


def add_gaussian_noise(
    total: Tensor, *, std: float, divisor: float, noise: NoiseSource, in_place: bool = False
) -> Tensor:
    """Return ``(total + N(0, std²)) / divisor`` (Dwork & Roth 2014, Appendix A), in the type of ``total``.

    Sum and noise are added in float64 and rounded to multiples of a public grid before anything else. Which floating
    point numbers can come out, and how often their last bits do, then says nothing about ``total`` (Mironov 2012,
    doi:10.1145/2382196.2382264): rounding, dividing and converting are post-processing of the noisy sum.

    What that rests on: a float64 normal is taken for a normal. Its error (of logarithm, root, sine and the addition) is
    under 1e-14 of ``std`` where the grid is at least 7.6e-6 of it: so the probability of a grid point is off by a
    factor of at most 1 ± 3e-9, and by what lies beyond 9.4 standard deviations (5e-21) in all. That is a model and is
    not charged to ε. ``total`` itself was rounded in float32 as it was summed: 2⁻²⁴ of its terms, each at most the
    clipping bound.

    Args:
        total: a clipped sum, of any shape.
        std: standard deviation: noise multiplier × sensitivity; 0 for none.
        divisor: a public constant: the expected batch size, or 1.
        noise: where the noise comes from.
        in_place: write the result over ``total``, if it is contiguous.
    """
    if std <= 0:
        working = torch.promote_types(total.dtype, torch.float32)
        return total.to(working, copy=True).div_(divisor).to(total.dtype)
    over = in_place and total.is_contiguous()
    out = total if over else torch.empty_like(total, memory_format=torch.contiguous_format)
    sums, released, grid = total.reshape(-1), out.view(-1), grid_of(std)

    def finish(numbers: Tensor, part: slice) -> None:
        # in units of the grid, a power of two
        numbers.mul_(std / grid).add_(sums[part], alpha=1 / grid).round_().mul_(grid / divisor)
        released[part].copy_(numbers)

    noise.each(total.shape, total.device, finish)
    return out
