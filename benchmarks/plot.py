"""A bar for each case and contestant, from 1 (plain) to its ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import Measurement
from tacit.report import style

COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00")  # Okabe & Ito 2008
TICKS = (0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
_ROW, _MARGIN = 0.16, 1.0  # inches


def save(results: Mapping[str, Sequence[Measurement]], path: Path) -> None:
    """Write the plot, as SVG or PNG by the name's ending. The first of each case is plain; lines are min to max.

    Args:
        results: measurements by case.
        path: where to.
    """
    names = list(dict.fromkeys(each.name for rows in results.values() for each in rows[1:]))
    height = _MARGIN + _ROW * (len(names) + 1) * len(results)
    figure, axes = style.figure(7.2, height)
    for index, name in enumerate(names):
        placed = [
            (case + (index + 0.5) / (len(names) + 1), each)
            for case, rows in enumerate(results.values())
            for each in rows[1:]
            if each.name == name
        ]
        heights, ratios = [place for place, _ in placed], [each.ratio for _, each in placed]
        below = [each.ratio - min(each.ratios) for _, each in placed]
        above = [max(each.ratios) - each.ratio for _, each in placed]
        axes.barh(
            heights,
            [ratio - 1 for ratio in ratios],
            left=1,
            height=1 / (len(names) + 1),
            color=COLOURS[index % len(COLOURS)],
            xerr=[below, above],
            error_kw={"ecolor": style.INK, "elinewidth": 0.8},
            label=name,
        )
    axes.set_xscale("log")
    extremes = [1.0, *(ratio for rows in results.values() for each in rows for ratio in each.ratios)]
    axes.set_xlim(min(extremes) * 0.95, max(extremes) * 1.1)
    axes.set_xticks([t for t in TICKS if min(extremes) * 0.95 <= t <= max(extremes) * 1.1])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(_nothing())
    axes.axvline(1, color=style.INK, linewidth=1)
    middle = len(names) / 2 / (len(names) + 1)
    axes.set_yticks([case + middle for case in range(len(results))], list(results))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    style.label(axes, "time of a step, × plain", "")
    if names:
        style.legend(axes, "best")
    figure.savefig(path)


def _nothing() -> object:
    from matplotlib.ticker import NullLocator

    return NullLocator()
