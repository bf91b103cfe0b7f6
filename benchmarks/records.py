"""What is kept of a run: one JSON line per measurement, enough to compare it with another run's."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import tacit
from benchmarks.cases import Case
from benchmarks.measure import Measurement
from tacit.uses import device_name


def environment(device: str = "cpu") -> dict[str, Any]:
    """What the numbers depend on besides the code measured."""
    return {
        "torch": torch.__version__,
        "tacit": tacit.__version__,
        "opacus": _version("opacus"),
        "python": platform.python_version(),
        "processor": device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
    }


def record(case: Case, measurement: Measurement, surroundings: dict[str, Any]) -> dict[str, Any]:
    return {
        **surroundings,
        "case": case.name,
        "sizes": dict(case.sizes),
        "contestant": measurement.name,
        "steps_per_round": measurement.steps,
        "median_ms_per_step": measurement.milliseconds,
        "median_ratio": measurement.ratio,
        "median_ms_per_draw": measurement.draw_milliseconds,
        "ms_per_step": [1e3 * timing.step for timing in measurement.rounds],
        "ms_per_draw": [1e3 * timing.draw for timing in measurement.rounds],
        "ratios": list(measurement.ratios),
    }


def memory_record(case: Case, contestant: str, megabytes: float, surroundings: dict[str, Any]) -> dict[str, Any]:
    sizes = dict(case.sizes)
    return {**surroundings, "case": case.name, "sizes": sizes, "contestant": contestant, "peak_megabytes": megabytes}


def new_file(folder: Path) -> Path:
    """Return a path in ``folder``, which is made, named after the present moment."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.jsonl"


def append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(each) + "\n" for each in records)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
