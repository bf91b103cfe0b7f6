"""Poisson sampling with rates that differ between records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tacit.accounting.checks import checked_count
from tacit.accounting.releases import PoissonRelease, Release
from tacit.errors import ConfigurationError
from tacit.sampling.base import Sampling, check_some
from tacit.sampling.draws import Draw
from tacit.sampling.parts import whole
from tacit.sampling.poisson import inclusion_threshold, random_bits
from tacit.sampling.source import check_source


@dataclass(frozen=True, eq=False)
class WeightedPoissonSampling(Sampling):
    """Record i joins each batch independently with probability ``rates[i]``.

    Epsilon is that of the record with the largest rate; the others have less. **The rates count as public**: they must
    not be computed from the records, only from what anyone may know of them.

    Attributes:
        rates: ``(records,)``, float64: inclusion probabilities, each in [0, 1], not all 0.
        steps_per_epoch: batches per epoch, at least 1.
        records: number of records in the dataset.

    Raises:
        ConfigurationError: a value outside these ranges.
    """

    rates: Tensor
    steps_per_epoch: int
    records: int = field(init=False)
    _thresholds: Tensor = field(init=False, repr=False)
    _always: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rates = self.rates
        if not isinstance(rates, Tensor) or rates.dim() != 1 or not rates.is_floating_point():
            raise ConfigurationError("rates must be a vector of floats: one for each record of the dataset.")
        if not bool(((rates >= 0) & (rates <= 1)).all()) or not bool((rates > 0).any()):
            raise ConfigurationError("rates must be probabilities, in [0, 1], and not all of them 0.")
        checked_count("steps_per_epoch", self.steps_per_epoch)
        exact = rates.double().tolist()
        object.__setattr__(self, "records", len(exact))
        thresholds = [min(inclusion_threshold(rate), 2**63 - 1) for rate in exact]
        object.__setattr__(self, "_thresholds", torch.tensor(thresholds, dtype=torch.int64))
        object.__setattr__(self, "_always", rates == 1.0)
        object.__setattr__(self, "rates", rates.detach().clone())  # not the caller's, who may change it

    @classmethod
    def from_loader(cls, loader: DataLoader[Any], *, weights: Tensor | Sequence[float]) -> WeightedPoissonSampling:
        """Rates in proportion to public weights, with batches of the loader's expected size.

        Raises:
            SamplingError: see :func:`tacit.sampling.check_source`.
            ConfigurationError: the weights do not fit the dataset, or a rate would be above 1.
        """
        loader = whole(loader)
        records = check_source(loader, poisson=True)
        given = torch.as_tensor(weights, dtype=torch.float64)
        if given.shape != (records,) or not bool((given >= 0).all()) or float(given.sum()) <= 0:
            raise ConfigurationError(
                f"weights has the shape {tuple(given.shape)} and the dataset {records} records: pass one weight of at "
                "least 0 for each record, not all of them 0."
            )
        rates = given / given.sum() * (records / len(loader))
        if float(rates.max()) > 1:
            raise ConfigurationError(
                f"the largest weight would need a rate of {float(rates.max()):.3g}, above 1. Use a smaller batch_size, "
                "or weights that differ less."
            )
        return cls(rates, len(loader))

    @property
    def expected_batch_size(self) -> float:
        """The sum of the rates."""
        return float(self.rates.double().sum())

    @property
    def amplified(self) -> bool:
        """True, unless a record joins every batch."""
        return self._largest < 1.0

    @property
    def _largest(self) -> float:
        return float(self.rates.double().max())

    @property
    def description(self) -> str:
        """One sentence for a privacy statement."""
        return (
            f"Weighted Poisson sampling: each of {self.records} records joins each batch independently with a public "
            f"probability of its own, at most {self._largest:.6g}, for which epsilon is; privacy amplification by "
            "sampling is claimed."
        )

    def batches(self, generator: torch.Generator) -> Iterator[list[int]]:
        """``steps_per_epoch`` independent batches of ascending indices."""
        for _ in range(self.steps_per_epoch):
            drawn = (random_bits(self.records, generator) < self._thresholds) | self._always
            batch: list[int] = drawn.nonzero().flatten().tolist()
            yield batch

    def event(self, noise_multiplier: float, draws: Sequence[Draw]) -> Release:
        """A Poisson release at the largest rate, of as many draws as contributed.

        Raises:
            SamplingError: ``draws`` is empty.
        """
        return PoissonRelease(noise_multiplier, self._largest, check_some(draws))
