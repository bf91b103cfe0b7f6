"""The Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.measure import Measurement

HEAD = ("case", "contestant", "ms per step", "× plain", "min–max", "rounds × steps", "ms per draw")
_NUMBERS = 2  # the columns from here on are aligned right


def markdown(results: Mapping[str, Sequence[Measurement]]) -> str:
    """One row per contestant; the case is named in its first row."""
    rows = [
        row(case if index == 0 else "", measurement)
        for case, measurements in results.items()
        for index, measurement in enumerate(measurements)
    ]
    rule = ["---" if index < _NUMBERS else "---:" for index in range(len(HEAD))]
    return "\n".join(_line(cells) for cells in (HEAD, rule, *rows))


def row(case: str, measurement: Measurement) -> tuple[str, ...]:
    ratios = measurement.ratios
    return (
        case,
        measurement.name,
        digits(measurement.milliseconds),
        f"{measurement.ratio:.2f}",
        f"{min(ratios):.2f}–{max(ratios):.2f}",
        f"{len(measurement.rounds)} × {measurement.steps}",
        digits(measurement.draw_milliseconds),
    )


def digits(value: float) -> str:
    """Three significant digits, none of them in an exponent."""
    places = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{places}f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
