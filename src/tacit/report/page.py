"""The report as one page that needs no other file and no network."""

from __future__ import annotations

import base64
from importlib.resources import files
from pathlib import Path

from tacit.numbers import compact, percent, upward
from tacit.report import plots
from tacit.report.content import Report

PAGE = "report.html"


def draw_plots(report: Report) -> dict[str, bytes]:
    """All plots of the report: PNG files by name, without ending."""
    facts = report.statement.facts
    return {
        "accuracy": plots.accuracy_plot(report.private_curve, report.plain_curve),
        "epsilon": plots.epsilon_plot(report.epsilon_curve, report.target_epsilon, facts["delta"]),
        "gradient_norms": plots.norms_plot(report.norms, facts["max_grad_norm"]),
        "fraction_clipped": plots.clipped_plot(report.clipped_curve),
        "confusion_matrix": plots.confusion_plot(report.confusion, report.classes),
    }


def render(report: Report, images: dict[str, bytes]) -> str:
    """The page as HTML, with the plots inside.

    Args:
        report: what to show.
        images: what :func:`draw_plots` returned.
    """
    import jinja2

    source = files("tacit.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    encoded = {name: base64.b64encode(image).decode("ascii") for name, image in images.items()}
    return environment.from_string(source).render(
        report=report,
        images=encoded,
        compact=compact,
        upward=upward,
        percent=percent,
    )


def write_report(report: Report, folder: Path) -> Path:
    """Write the page and the plots into an existing folder.

    Returns:
        the page.

    Raises:
        OSError: a file cannot be written.
    """
    images = draw_plots(report)
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    page = folder / PAGE
    page.write_text(render(report, images), encoding="utf-8")
    return page
