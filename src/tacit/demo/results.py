"""What a finished run says: privacy.json, the report and the last line."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tacit.demo.data import CLASSES, Digits
from tacit.demo.evaluation import accuracy, confusion_matrix
from tacit.demo.files import PRIVACY, write_text
from tacit.demo.plain import PlainResult
from tacit.demo.private import PrivateRun
from tacit.demo.record import norm_edges
from tacit.numbers import upward
from tacit.report.content import Curve, NormHistogram, Report
from tacit.report.page import write_report
from tacit.statement import Statement

NOT_COVERED = (
    "The network, learning rate, epochs, batch size and clipping bound: they were found by trying on this data.",
    "The plots of gradient norms and of clipping in this report: they are computed from the training data without "
    "noise.",
    "The plots of accuracy and the confusion matrix: they are computed from the test images, without noise.",
    "The model trained without privacy: it has none.",
)
LIBRARIES = ("tacit", "torch", "numpy", "scipy", "dp-accounting", "scikit-learn", "matplotlib")


@dataclass(frozen=True, slots=True)
class DemoResult:
    """How the demo ended.

    Attributes:
        accuracy: test accuracy of the private model, in [0, 1].
        plain_accuracy: that of the model without privacy.
        epsilon: ε of the private run.
        delta: its δ.
        steps: number of releases.
        page: the report.
    """

    accuracy: float
    plain_accuracy: float
    epsilon: float
    delta: float
    steps: int
    page: Path

    @property
    def line(self) -> str:
        """The last line that the demo prints."""
        mantissa, exponent = f"{self.delta:.2e}".split("e")
        delta = f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"
        return (
            f"test accuracy {self.accuracy:.3f} (without privacy {self.plain_accuracy:.3f}) "
            f"at epsilon {upward(self.epsilon)}, delta {delta}"
        )


def write_results(private: PrivateRun, plain: PlainResult, digits: Digits, folder: Path) -> DemoResult:
    """Write ``privacy.json``, the plots and the report into ``folder``."""
    options = private.record.options
    test_accuracy = accuracy(private.network, digits)
    statement = private.engine.statement(options.delta, unit="digit image", not_covered=NOT_COVERED)
    numbers = {
        **statement.facts,
        "epsilon": private.epsilon,
        "target_epsilon": options.epsilon,
        "sample_rate": private.sample_rate,
        "steps": private.steps,
        "planned_steps": private.planned_steps,
        **{name: getattr(options, name) for name in ("epochs", "batch_size", "seed")},
        "test_records": len(digits.test_labels),
        "test_accuracy": test_accuracy,
        "test_accuracy_without_privacy": plain.accuracies[-1],
        "versions": _versions(),
    }
    write_text(folder / PRIVACY, json.dumps(numbers, indent=2, allow_nan=False) + "\n")
    page = write_report(_report(private, plain, digits, statement, test_accuracy), folder)
    return DemoResult(test_accuracy, plain.accuracies[-1], private.epsilon, options.delta, private.steps, page)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def _report(
    private: PrivateRun,
    plain: PlainResult,
    digits: Digits,
    statement: Statement,
    test_accuracy: float,
) -> Report:
    record, options = private.record, private.record.options
    steps = [point.step for point in record.points]
    return Report(
        title="Handwritten digits, learnt with differential privacy",
        summary=(
            f"A small convolutional network was trained on {digits.records:,} scanned 8×8 digits with differential "
            "privacy, and once more in the same way without. Both were tested on "
            f"{len(digits.test_labels)} digits that were held out."
        ),
        statement=statement,
        epsilon=private.epsilon,
        target_epsilon=options.epsilon,
        accuracy=test_accuracy,
        plain_accuracy=plain.accuracies[-1],
        private_curve=Curve(steps, [point.accuracy for point in record.points]),
        plain_curve=Curve(plain.steps, plain.accuracies),
        epsilon_curve=Curve(steps, [point.epsilon for point in record.points]),
        clipped_curve=Curve([step for step, _ in record.clipped], [share for _, share in record.clipped]),
        norms=NormHistogram(norm_edges(), {"first epoch": record.first_norms, "last epoch": record.last_norms}),
        confusion=confusion_matrix(private.network, digits),
        classes=CLASSES,
        settings={
            "epochs": str(options.epochs),
            "steps": str(private.steps),
            "expected batch size": f"{digits.records * private.sample_rate:.1f}",
            "seed (weights, split, order without privacy)": str(options.seed),
        },
        versions=_versions(),
    )
