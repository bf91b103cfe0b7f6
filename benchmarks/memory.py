"""Peak memory of a step, each contestant in a process of its own: what one has used, the next would find mapped."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.contestants import MODES, NOISE_MULTIPLIER, contestants, quiet
from benchmarks.registry import BY_NAME

STEPS = 8
_PAGE = resource.getpagesize()


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def peak() -> int:
    """Most bytes of this process that were in memory at once. (``ru_maxrss`` begins with the parent's.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def peak_of_steps(case: str, place: int, against: str | None, modes: Sequence[str] = MODES, device: str = "cpu") -> int:
    """Bytes by which a few steps raise the peak above what is there before the first: on CUDA, that of its tensors."""
    with quiet():
        contestant = contestants(against, modes, device)[place](BY_NAME[case], NOISE_MULTIPLIER, {})
        assert contestant is not None, "this peer cannot take part"
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = resident() if device == "cpu" else torch.cuda.memory_allocated()
        for _ in range(STEPS):
            contestant.step(contestant.draw())
    return (peak() if device == "cpu" else torch.cuda.max_memory_allocated()) - before


def measured(case: str, against: str | None, modes: Sequence[str], device: str = "cpu") -> list[tuple[str, float]]:
    """Each contestant's name and megabytes, the plain step first."""
    with quiet():
        makers = contestants(against, modes)
        tiny = [make(BY_NAME[case], 0.0, dict(BY_NAME[case].tiny)) for make in makers]
    found = []
    for place, name in ((place, made.name) for place, made in enumerate(tiny) if made is not None):
        command = [sys.executable, "-m", "benchmarks.memory", case, str(place), against or "", device, *modes]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found.append((name, int(done.stdout) / 1e6 if done.returncode == 0 else float("nan")))
    return found


def markdown(results: dict[str, list[tuple[str, float]]]) -> str:
    """A table of megabytes and of ratios to the plain step."""
    lines = ["| case | contestant | MB | × plain |", "| --- | --- | ---: | ---: |"]
    for case, rows in results.items():
        plain = rows[0][1]
        for index, (name, size) in enumerate(rows):
            lines.append(f"| {'' if index else case} | {name} | {size:.0f} | {size / plain:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(peak_of_steps(sys.argv[1], int(sys.argv[2]), sys.argv[3] or None, sys.argv[5:], sys.argv[4]))
