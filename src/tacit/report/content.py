"""What a report is made from: numbers and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tacit.statement import Statement


@dataclass(frozen=True, slots=True)
class Curve:
    """Readings along a run: ``values[i]`` after ``steps[i]`` optimizer steps.

    Raises:
        ValueError: the two differ in length.
    """

    steps: Sequence[int]
    values: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values):
            raise ValueError(f"a curve has {len(self.steps)} steps and {len(self.values)} values")


@dataclass(frozen=True, slots=True)
class NormHistogram:
    """Gradient norms of single samples, counted in bins.

    Attributes:
        edges: of the bins, ascending, one more than bins.
        counts: by name of the group of samples (such as ``"first epoch"``), one count for each bin.

    Raises:
        ValueError: a group has not one count for each bin.
    """

    edges: Sequence[float]
    counts: Mapping[str, Sequence[int]]

    def __post_init__(self) -> None:
        for name, counts in self.counts.items():
            if len(counts) != len(self.edges) - 1:
                raise ValueError(f"{name!r} has {len(counts)} counts for {len(self.edges) - 1} bins")


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows.

    Attributes:
        title: of the page.
        summary: what was done, in a sentence or two.
        statement: what is promised.
        epsilon: ε of all releases, by the accountant that the run had.
        target_epsilon: the ε that was not to be passed.
        accuracy: test accuracy with privacy, in [0, 1].
        plain_accuracy: test accuracy without, in [0, 1].
        private_curve: test accuracy along the private run.
        plain_curve: test accuracy along the run without privacy.
        epsilon_curve: ε along the private run.
        clipped_curve: fraction of the batch that was clipped, along the private run.
        norms: gradient norms before clipping.
        confusion: number of test samples by true class (row) and predicted class (column).
        classes: names of the classes.
        settings: options of the run, by name.
        versions: of the libraries, by name.
    """

    title: str
    summary: str
    statement: Statement
    epsilon: float
    target_epsilon: float
    accuracy: float
    plain_accuracy: float
    private_curve: Curve
    plain_curve: Curve
    epsilon_curve: Curve
    clipped_curve: Curve
    norms: NormHistogram
    confusion: Sequence[Sequence[int]]
    classes: Sequence[str]
    settings: Mapping[str, str]
    versions: Mapping[str, str]
