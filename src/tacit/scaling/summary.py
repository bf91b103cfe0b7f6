"""A forecast as plain data, and what to do where it does not fit."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tacit.scaling.forecast import Forecast
from tacit.scaling.setting import GIB, Mode


def facts(forecast: Forecast) -> dict[str, Any]:
    """All that a forecast says; sizes in bytes, times in seconds."""
    ways = {name: forecast.with_setting(checkpointing=on) for name, on in (("without", False), ("with", True))}
    return {
        "parameters": forecast.survey.numbers,
        "samples": forecast.survey.samples,
        "setting": {name: getattr(forecast.setting, name) for name in ("processes", "sharding", "mode", "optimizer")},
        "checkpointing": {name: _one(way) for name, way in ways.items()},
        "sent": [asdict(each) for each in forecast.traffic],
        "sent_without_privacy": [asdict(each) for each in forecast.plain.traffic],
        "kinds": [
            {
                "pattern": kind.pattern,
                "shape": list(kind.shape),
                "count": kind.count,
                "strategy": kind.strategy,
                "held": kind.held,
                "predicted_seconds": dict(kind.seconds),
            }
            for kind in forecast.kinds
        ],
        "advice": advice(forecast),
    }


def advice(forecast: Forecast) -> list[str]:
    """What to do where it does not fit; nothing where it does, or where nobody says how much memory there is."""
    if forecast.memory is None or forecast.fits:
        return []
    lines = [f"{other.setting.text}: {_gib(other.estimate.total)}" for other in forecast.ways_out()]
    estimate = forecast.estimate
    state = sum(estimate.state.values())
    if not lines:
        lines.append(f"No way to train that is known here fits: {_gib(state)} is there whatever the batch.")
    lines.append(
        f"{_gib(estimate.total - state)} grow with the batch of one process and with its length: smaller physical "
        "batches (BatchMemoryManager) give the same gradients."
    )
    if forecast.setting.mode is Mode.auto and not forecast.setting.sharded:  # all processes must run as many passes
        lines.append(
            f"memory_budget= bounds what is held for the clip, here {_gib(forecast.held)}: matrices need at least "
            f"{_gib(forecast.survey.expected)} of it in one backward, and with less it runs twice, as in ghost mode."
        )
    return lines


def _one(forecast: Forecast) -> dict[str, Any]:
    estimate = forecast.estimate
    return {
        "state": dict(estimate.state),
        "activations": forecast.survey.activations.waiting(checkpointing=forecast.setting.checkpointing),
        "held": forecast.held,
        "moments": dict(estimate.moments),
        "total": estimate.total,
        "total_without_privacy": forecast.plain.estimate.total,
        "fits": forecast.fits,
    }


def _gib(size: float) -> str:
    return f"{size / GIB:.3g} GiB"
