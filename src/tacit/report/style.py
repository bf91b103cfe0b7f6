"""One look for all plots."""

from __future__ import annotations

import io
from typing import Any

# Okabe & Ito 2008: told apart with any kind of colour blindness.
PRIVATE, PLAIN, BOUND = "#0072B2", "#E69F00", "#D55E00"
INK, GRID = "#333333", "#e4e4e4"


def figure(width: float = 6.4, height: float = 3.6) -> tuple[Any, Any]:
    """A matplotlib figure with one axes, without pyplot's global state.

    Args:
        width: in inches.
        height: in inches.
    """
    drawn, panels = stacked(1, width, height)
    return drawn, panels[0]


def stacked(count: int, width: float = 6.4, height: float = 3.6) -> tuple[Any, list[Any]]:
    """A figure with ``count`` axes below each other that share the horizontal axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(drawn)
    panels = list(drawn.subplots(count, sharex=True, squeeze=False)[:, 0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.tick_params(colors=INK, labelsize=9)
        axes.grid(True, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    return drawn, panels


def label(axes: Any, x: str, y: str) -> None:
    """Name the axes, with units."""
    axes.set_xlabel(x, color=INK, fontsize=10)
    axes.set_ylabel(y, color=INK, fontsize=10)


def legend(axes: Any, location: str) -> None:
    axes.legend(loc=location, frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)


def png(drawn: Any) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png")
    return buffer.getvalue()
