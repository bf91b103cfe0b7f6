"""Fewer distinct releases, so that a schedule of thousands of noise levels stays cheap."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tacit.accounting.pairs import Pair
from tacit.accounting.releases import PoissonRelease


def grouped(sampled: Mapping[Pair, int], most: int, *, upper: bool) -> Mapping[Pair, int]:
    """At most ``most`` distinct releases that cost at least as much (``upper``), or at most as much.

    Releases in one cell of a geometric grid count as one, with the least noise and the largest rate of the cell (else
    the most noise and the smallest rate). More noise is post-processing, and a smaller rate is a mixture with not
    sampling the record at all: both only lower the privacy loss. Numbers of draws are kept apart; other pairs are kept.
    """
    kept: dict[Pair, int] = {pair: count for pair, count in sampled.items() if not isinstance(pair, PoissonRelease)}
    ratio, found = 1e-3, sampled
    worst, rarest = (min, max) if upper else (max, min)
    while len(found) - len(kept) > most and ratio < 1e3:
        cells: dict[tuple[int, int, int], tuple[PoissonRelease, int]] = {}
        for release, count in sampled.items():
            if not isinstance(release, PoissonRelease):
                continue
            noise_cell = math.floor(math.log(release.noise_multiplier) / ratio)
            rate_cell = math.floor(math.log(release.sample_rate) / ratio)
            key = (noise_cell, rate_cell, release.draws)
            known, total = cells.get(key, (release, 0))
            noise = worst(known.noise_multiplier, release.noise_multiplier)
            rate = rarest(known.sample_rate, release.sample_rate)
            cells[key] = PoissonRelease(noise, rate, release.draws), total + count
        merged: dict[Pair, int] = dict(kept)
        for release, count in cells.values():
            merged[release] = merged.get(release, 0) + count
        found, ratio = merged, 2 * ratio
    return found
