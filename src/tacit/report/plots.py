"""The plots of a report, each as the bytes of a PNG file."""

from __future__ import annotations

from collections.abc import Sequence

from tacit.numbers import compact
from tacit.report import style
from tacit.report.content import Curve, NormHistogram


def accuracy_plot(private: Curve, plain: Curve) -> bytes:
    """Test accuracy against steps, with and without privacy."""
    figure, axes = style.figure()
    axes.plot(plain.steps, _percents(plain), color=style.PLAIN, linewidth=2, linestyle="--", label="without privacy")
    axes.plot(private.steps, _percents(private), color=style.PRIVATE, linewidth=2, label="with privacy")
    axes.set_ylim(0, 102)
    axes.set_xlim(left=0)
    style.label(axes, "optimizer steps", "test accuracy (%)")
    style.legend(axes, "lower right")
    return style.png(figure)


def epsilon_plot(spent: Curve, target: float, delta: float) -> bytes:
    """ε against steps, with the target."""
    figure, axes = style.figure()
    axes.axhline(target, color=style.BOUND, linestyle="--", linewidth=1.5, label=f"target ε = {target:g}")
    steps, values = [0, *spent.steps], [0.0, *spent.values]
    axes.plot(steps, values, color=style.PRIVATE, linewidth=2, label="ε spent so far")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.12 * max(target, *values))
    style.label(axes, "optimizer steps", f"ε at δ = {compact(delta)}")
    style.legend(axes, "lower right")
    return style.png(figure)


def clipped_plot(clipped: Curve) -> bytes:
    """Percentage of each batch that was clipped against steps."""
    figure, axes = style.figure()
    axes.plot(clipped.steps, _percents(clipped), color=style.PRIVATE, linewidth=1.5)
    axes.set_ylim(0, 102)
    axes.set_xlim(left=0)
    style.label(axes, "optimizer steps", "samples clipped (% of the batch)")
    return style.png(figure)


def norms_plot(norms: NormHistogram, max_grad_norm: float) -> bytes:
    """Histograms of gradient norms before clipping, one below the other, with the clipping bound."""
    figure, panels = style.stacked(max(len(norms.counts), 1))
    for axes, (name, counts) in zip(panels, norms.counts.items(), strict=False):
        total = max(sum(counts), 1)
        shares = [100 * count / total for count in counts]
        axes.stairs(shares, norms.edges, fill=True, color=style.PRIVATE, alpha=0.75)
        bound = f"clipping bound {max_grad_norm:g}"
        axes.axvline(max_grad_norm, color=style.BOUND, linestyle="--", linewidth=1.5, label=bound)
        axes.set_title(name, loc="left", fontsize=10, color=style.INK)
        axes.set_ylim(bottom=0)
        style.label(axes, "", "samples (%)")
    panels[0].set_xscale("log")
    panels[0].set_xlim(*_occupied(norms, max_grad_norm))
    style.legend(panels[0], "upper left")
    panels[-1].set_xlabel("l2 norm of one sample's gradient, before clipping", color=style.INK, fontsize=10)
    return style.png(figure)


def confusion_plot(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> bytes:
    """Confusion matrix of the test samples: shade by fraction of the true class, counts written in."""
    figure, axes = style.figure(5.4, 4.6)
    shares = [[count / max(sum(row), 1) for count in row] for row in confusion]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for i, row in enumerate(confusion):
        for j, count in enumerate(row):
            if count:
                ink = "white" if shares[i][j] > 0.5 else style.INK
                axes.text(j, i, str(count), ha="center", va="center", color=ink, fontsize=9)
    style.label(axes, "predicted class", "true class")
    bar = figure.colorbar(image, ax=axes, shrink=0.85, format=lambda share, _: f"{100 * share:.0f} %")
    bar.set_label("share of the true class", color=style.INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=style.INK)
    bar.outline.set_visible(False)
    return style.png(figure)


def _percents(curve: Curve) -> list[float]:
    return [100 * value for value in curve.values]


def _occupied(norms: NormHistogram, bound: float) -> tuple[float, float]:
    """Limits that show all counted norms and the bound, with a little room."""
    filled = [i for counts in norms.counts.values() for i, count in enumerate(counts) if count]
    low = min([bound, *(norms.edges[i] for i in filled)])
    high = max([bound, *(norms.edges[i + 1] for i in filled)])
    return low / 1.3, high * 1.3
