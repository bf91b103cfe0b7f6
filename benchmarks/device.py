"""Where the steps run."""

from __future__ import annotations

import time

import torch

from benchmarks.measure import Clock

DEVICES = ("cpu", "cuda")


def present(device: str) -> bool:
    return device == "cpu" or torch.cuda.is_available()


def clock_of(device: str) -> Clock:
    """Seconds; on CUDA only once all that was asked for is done."""
    if device == "cpu":
        return time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised
