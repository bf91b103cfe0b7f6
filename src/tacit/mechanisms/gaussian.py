"""The Gaussian mechanism: the only place where noise is added."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tacit.mechanisms.fused import Rounding
from tacit.mechanisms.moving import Move
from tacit.mechanisms.noise import NoiseSource
from tacit.mechanisms.rounding import rounding_of
from tacit.mechanisms.secure import Job

_GRID_BITS = 12

SMALL = 2**12
"""Tensors of at most so many numbers are made noisy together: they cost more in calls than in arithmetic."""


def grid_of(std: float) -> float:
    """The public grid that releases are rounded to: ``2^(⌊log₂ std⌋ − 12)``."""
    return math.ldexp(1.0, math.floor(math.log2(std)) - _GRID_BITS)


def add_gaussian_noise(
    totals: Sequence[Tensor],
    *,
    std: float,
    divisor: float,
    noise: NoiseSource,
    in_place: bool = False,
    moves: Sequence[Move | None] = (),
    records: float = 1.0,
) -> list[Tensor]:
    """Return ``(total + N(0, std²)) / divisor`` (Dwork & Roth 2014, Appendix A) for each, in the type of ``total``.

    Sum and noise are added in float64 and rounded to multiples of a public grid before anything else. Which floating
    point numbers can come out, and how often their last bits do, then says nothing about ``total`` (Mironov 2012,
    doi:10.1145/2382196.2382264): rounding, dividing and converting are post-processing of the noisy sum.

    What rounding can do is paid for with noise: its deviation is ``1 + 2⁻¹²`` times ``std``, and more for more than
    2,048 records (`rounding_of`), so that the sensitivity may be larger by that part than the accounted one. Against
    this stand, in units of the clipping bound:

    * a sample's own factor and gradient: norms are summed in blocks or in float64, factors and products rounded to
      float32: under 2⁻¹⁸ (proved for blocks of up to 2⁵ partial sums, each rounded to 2⁻²⁴). Norms from Gram matrices
      whose terms nearly cancel are raised by more than rounding was seen to take off; of others it is under 1e-4;
    * the order in which float32 sums up the others, which a sample more may change, and with several processes, in
      which of them: measured, under 6e-5 for batches of up to 1024, of one process or several
      (`tests/mechanisms/test_rounding.py`). No bound that holds for all data is known that is of use;
    * what a sample more does to the others' gradients, by 1/B, where the loss is a mean: in float32 no more than the
      order does, also measured; in low precision it is much more, and the sensitivity is larger by it (`uneven.py`).
    * cells: a float64 normal, off by under 1e-14 of ``std`` (logarithm, root, sine, the addition), changes the
      probability of a grid point, at least 1.2e-4 of ``std`` wide, by a factor of at most 1 ± 1.7e-10, independently in
      each coordinate. By Azuma's inequality the losses of D coordinates in all releases together differ from their
      ideal by more than 1.7e-10·√(2 D ln(1/δ′)) with probability δ′: 1.7e-4 for D = 10¹⁰ and δ′ = 1e-20. That is less
      than what the larger noise takes off an ε of 1 or more. Beyond 9.4 deviations lies a mass of 5e-21.

    Args:
        totals: clipped sums, of any shape: made together, so that all cores are busy.
        std: the accounted standard deviation: noise multiplier × sensitivity; 0 for none.
        divisor: a public constant: the expected batch size, or 1.
        noise: where the noise comes from.
        in_place: write the results over ``totals``, where these are contiguous.
        moves: weights to be moved by the result of each of ``totals``; ``()`` for none.
        records: how many are expected in the sums.
    """
    moves = moves or [None] * len(totals)
    if std <= 0:
        divided = [_divided(total, divisor) for total in totals]
        _move(moves, divided)
        return divided
    deviation = std * (1 + rounding_of(records))
    outs: list[Tensor] = []
    jobs: dict[torch.device, list[Job]] = {}
    few: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, total in enumerate(totals):
        over = in_place and total.is_contiguous()
        outs.append(total if over else total.clone(memory_format=torch.contiguous_format))
        if not total.numel():
            continue
        if total.numel() <= SMALL:
            few.setdefault((total.device, total.dtype), []).append(place)
        else:
            jobs.setdefault(total.device, []).append(_job(outs[-1], std, deviation, divisor, moves[place]))
    joined = {key: _joined([outs[place] for place in places]) for key, places in few.items()}
    for (device, _), whole in joined.items():
        jobs.setdefault(device, []).append(_job(whole, std, deviation, divisor))
    for device, several in jobs.items():
        noise.each(several, device)
    for key, places in few.items():
        chosen = [outs[place] for place in places]
        torch._foreach_copy_(chosen, torch._utils._unflatten_dense_tensors(joined[key], chosen))
        _move([moves[place] for place in places], chosen)
    return outs


def _joined(outs: Sequence[Tensor]) -> Tensor:
    """All numbers of contiguous tensors, side by side; of one alone it is a view."""
    whole: Tensor = torch._utils._flatten_dense_tensors(outs)
    return whole


def _divided(total: Tensor, divisor: float) -> Tensor:
    working = torch.promote_types(total.dtype, torch.float32)
    return total.to(working, copy=True).div_(divisor).to(total.dtype)


def _move(moves: Sequence[Move | None], released: Sequence[Tensor]) -> None:
    for move, result in zip(moves, released, strict=True):
        if move is not None:
            move(result.reshape(-1), slice(None))


def _job(values: Tensor, std: float, deviation: float, divisor: float, move: Move | None = None) -> Job:
    """Noise for a contiguous sum, its rounding and its division, written over it."""
    grid = grid_of(std)
    # In units of the grid, a power of two.
    rounding = Rounding(values.view(-1), into=1 / grid, back=grid / divisor, move=move)
    return Job(values.numel(), rounding, deviation / grid)
