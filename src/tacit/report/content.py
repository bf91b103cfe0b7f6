"""What a report is made from: numbers and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
class PrivacyFacts:
    """What the privacy statement says.

    Attributes:
        unit: what one record is, such as ``"one digit image"``.
        records: number of records in the training data.
        adjacency: the neighbouring relation, ``"add-or-remove-one"`` or ``"zero-out-one"``.
        epsilon: ε of all releases, in nats.
        delta: the δ of that ε.
        target_epsilon: the ε that was not to be passed.
        accountant: what computed ε.
        sampling: how batches were drawn, in a sentence.
        sample_rate: probability with which a record joins a batch.
        noise_multiplier: standard deviation of the noise / clipping bound.
        max_grad_norm: the clipping bound, an l2 norm.
        noise_source: where the noise came from.
        releases: how many noisy gradients left the private computation.
    """

    unit: str
    records: int
    adjacency: str
    epsilon: float
    delta: float
    target_epsilon: float
    accountant: str
    sampling: str
    sample_rate: float
    noise_multiplier: float
    max_grad_norm: float
    noise_source: str
    releases: int


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows.

    Attributes:
        title: of the page.
        summary: what was done, in a sentence or two.
        facts: for the privacy statement.
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
    facts: PrivacyFacts
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
