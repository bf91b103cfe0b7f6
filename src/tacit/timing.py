"""How long a call takes on a device, whatever else goes on at the machine."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def quickest(attempt: Callable[[], object], runs: int, device: torch.device | None = None) -> float:
    """Seconds of the quickest of a few runs: what else goes on makes others slower.

    Args:
        attempt: what is timed.
        runs: how often.
        device: where it runs, if it does not wait for a GPU by itself.
    """
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        attempt()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
