"""Which record joined which batch, and whether that is as likely as it should be.

Tests take exact binomial or chi-square tails at ``ALARM`` on fixed seeds: were the seeds drawn anew, all of one file
together would fail a right sampler with probability below 1e-6.
"""

import torch
from scipy.stats import binomtest, chi2

from tacit.sampling import Sampling

ALARM = 2e-8


def joined(sampling: Sampling, *, seed: int = 3, epochs: int = 1) -> torch.Tensor:
    """``(epochs * steps_per_epoch, records)``, bool: which record joined which batch."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(epochs):
        for batch in sampling.batches(generator):
            row = torch.zeros(sampling.records, dtype=torch.bool)
            row[batch] = True
            assert int(row.sum()) == len(batch)
            rows.append(row)
    return torch.stack(rows)


def likely(found: torch.Tensor, rate: float) -> bool:
    """Whether independent events of this probability may have come out so."""
    return float(binomtest(int(found.sum()), found.numel(), rate).pvalue) > ALARM


def evenly(counts: torch.Tensor, variance: float, *, freedom: int) -> bool:
    """Whether counts scatter about their known common mean as independent ones of this variance."""
    statistic = ((counts.double() - counts.double().mean()) ** 2 / variance).sum().item()
    return bool(chi2.isf(1 - ALARM, freedom) < statistic < chi2.isf(ALARM, freedom))


def independent(one: torch.Tensor, other: torch.Tensor, rate: float) -> bool:
    """Whether two events of this probability coincide as often as independent ones do; each pair is another trial."""
    return likely(one & other, rate**2)
