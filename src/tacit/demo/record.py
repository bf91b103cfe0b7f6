"""What is kept of a run beside its checkpoint: the options and the curves."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tacit.demo.files import write_text
from tacit.demo.options import DemoOptions
from tacit.errors import CheckpointError
from tacit.stats import ClipStats

VERSION = 1
LOWEST, HIGHEST, PER_DECADE = -4, 4, 8


def norm_edges() -> list[float]:
    """Edges of the bins in which gradient norms are counted, equal on a logarithmic axis."""
    bins = (HIGHEST - LOWEST) * PER_DECADE
    return [10 ** (LOWEST + i / PER_DECADE) for i in range(bins + 1)]


@dataclass(frozen=True, slots=True)
class Point:
    """One reading during training.

    Attributes:
        step: number of releases so far.
        accuracy: fraction of test images read right.
        epsilon: ε of all releases so far.
    """

    step: int
    accuracy: float
    epsilon: float


@dataclass(slots=True)
class RunRecord:
    """Options and curves of a run. The budget is not here: the accountant in the checkpoint keeps it.

    Attributes:
        options: the planned run.
        points: readings, by step.
        clipped: ``[step, fraction]`` of the samples whose gradient was clipped.
        first_norms: gradient norms of the first epoch, counted in the bins of :func:`norm_edges`.
        last_norms: those of the last epoch.
    """

    options: DemoOptions
    points: list[Point] = field(default_factory=list)
    clipped: list[tuple[int, float]] = field(default_factory=list)
    first_norms: list[int] = field(default_factory=lambda: [0] * (len(norm_edges()) - 1))
    last_norms: list[int] = field(default_factory=lambda: [0] * (len(norm_edges()) - 1))

    def add_clipping(self, step: int, stats: ClipStats, steps_per_epoch: int) -> None:
        """Take note of what the backward of release number ``step`` clipped; an empty batch clips nothing."""
        if stats.samples:
            self.clipped.append((step, stats.fraction_clipped))
        edges = norm_edges()
        inside = np.clip(stats.finite_norms.numpy(), edges[0], edges[-1])
        counts = np.histogram(inside, edges)[0]
        if step <= steps_per_epoch:
            self.first_norms = (np.asarray(self.first_norms) + counts).tolist()
        if step > (self.options.epochs - 1) * steps_per_epoch:
            self.last_norms = (np.asarray(self.last_norms) + counts).tolist()

    def forget_after(self, step: int) -> None:
        """Drop readings of steps that the checkpoint does not know; they will be taken again."""
        self.points = [point for point in self.points if point.step <= step]
        self.clipped = [(at, fraction) for at, fraction in self.clipped if at <= step]

    def write(self, path: Path) -> None:
        """Replace the record at ``path``, all or nothing."""
        write_text(path, json.dumps({"version": VERSION, **dataclasses.asdict(self)}, allow_nan=False))


def read_record(path: Path) -> RunRecord:
    """Read what :meth:`RunRecord.write` wrote.

    Raises:
        CheckpointError: there is none, or it was not written by this version.
    """
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"there is no {path}, so the plan of the run is not known and cannot be resumed: start without --resume."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}), so the plan of the run is not known and cannot be resumed: start "
            "without --resume."
        ) from error


def _parse(content: dict[str, Any]) -> RunRecord:
    if content["version"] != VERSION:
        raise ValueError(f"its version is {content['version']!r}, not {VERSION}")
    bins = len(norm_edges()) - 1
    for name in ("first_norms", "last_norms"):
        if len(content[name]) != bins or not all(math.isfinite(count) for count in content[name]):
            raise ValueError(f"{name} is not {bins} counts")
    return RunRecord(
        DemoOptions(**content["options"]),
        [Point(**point) for point in content["points"]],
        [(step, fraction) for step, fraction in content["clipped"]],
        content["first_norms"],
        content["last_norms"],
    )
