"""Poisson sampling against its definition.

The statistical tests use exact binomial or chi-square tails at 1e-7 on fixed seeds: were the seeds
drawn anew, the tests of this file together would fail a right sampler with probability below 1e-6.
"""

import math
from fractions import Fraction

import pytest
import torch
from scipy.stats import binomtest, chi2
from torch.utils.data import DataLoader, TensorDataset

from tacit.accounting.releases import PoissonRelease
from tacit.errors import ConfigurationError, SamplingError
from tacit.sampling import Draw, PoissonSampling, inclusion_threshold, poisson
from tacit.sampling.poisson import skipping

RECORDS, RATE, STEPS = 2000, 0.1, 400
ALARM = 1e-7


@pytest.fixture(scope="module")
def included() -> torch.Tensor:
    """(STEPS, RECORDS) bool: which record joined which batch."""
    sampling = PoissonSampling(RECORDS, RATE, STEPS)
    table = torch.zeros(STEPS, RECORDS, dtype=torch.bool)
    for step, batch in enumerate(sampling.batches(torch.Generator().manual_seed(3))):
        table[step, batch] = True
    return table


def p_value(successes: torch.Tensor, trials: int, rate: float) -> float:
    return float(binomtest(int(successes.sum()), trials, rate).pvalue)


def test_marginal_rate(included):
    assert p_value(included, STEPS * RECORDS, RATE) > ALARM


def test_every_record_has_the_same_rate(included):
    counts = included.sum(0).double()
    statistic = ((counts - STEPS * RATE) ** 2 / (STEPS * RATE * (1 - RATE))).sum().item()
    assert chi2.isf(1 - ALARM, RECORDS) < statistic < chi2.isf(ALARM, RECORDS)


def test_batch_sizes_vary_as_for_pairwise_independent_records(included):
    sizes = included.sum(1).double()
    statistic = ((sizes - RECORDS * RATE) ** 2 / (RECORDS * RATE * (1 - RATE))).sum().item()
    assert chi2.isf(1 - ALARM, STEPS) < statistic < chi2.isf(ALARM, STEPS)


@pytest.mark.parametrize("distance", [1, 2, 64])
def test_two_records_join_one_batch_independently(included, distance):
    blocks = included[:, : RECORDS // (2 * distance) * 2 * distance].view(STEPS, -1, 2, distance)
    both = blocks[:, :, 0] & blocks[:, :, 1]
    assert p_value(both, both.numel(), RATE**2) > ALARM


def test_one_record_joins_two_successive_batches_independently(included):
    both = included[0::2] & included[1::2]
    assert p_value(both, both.numel(), RATE**2) > ALARM


@pytest.mark.parametrize("rate", [1e-9, 1e-7, 0.1, 1 / 3, 0.5, 1 - 2**-53, 1.0])
def test_threshold_is_exact(rate):
    threshold = inclusion_threshold(rate)
    assert threshold == Fraction(rate) * 2**63 // 1
    assert 0 <= Fraction(rate) - Fraction(threshold, 2**63) < Fraction(1, 2**63)


def test_threshold_of_known_rates():
    assert inclusion_threshold(0.5) == 2**62
    assert inclusion_threshold(2.0**-63) == 1
    assert inclusion_threshold(1.0) == 2**63


def test_random_words_have_63_bits():
    words = torch.empty(4096, dtype=torch.int64).random_(generator=torch.Generator().manual_seed(0))
    assert words.min() >= 0
    for bit in range(63):
        # Binomial(4096, 1/2) beyond 6 standard deviations: 2e-9 for each of 63 bits.
        assert abs(int((words >> bit & 1).sum()) - 2048) < 6 * 32


def test_small_rate_is_not_lost():
    sampling = PoissonSampling(1_000_000, 1e-5, 20)
    drawn = sum(len(batch) for batch in sampling.batches(torch.Generator().manual_seed(1)))
    assert binomtest(drawn, 20_000_000, 1e-5).pvalue > ALARM


def test_rate_one_includes_all():
    generator = torch.Generator().manual_seed(0)
    assert list(PoissonSampling(5, 1.0, 2).batches(generator)) == [[0, 1, 2, 3, 4]] * 2
    assert not PoissonSampling(5, 1.0, 2).amplified


def test_batches_ascend_and_can_be_empty():
    batches = list(PoissonSampling(4, 0.2, 50).batches(torch.Generator().manual_seed(0)))
    assert len(batches) == 50
    assert [] in batches
    assert all(batch == sorted(set(batch)) for batch in batches)


@pytest.mark.parametrize("records", [49, 50, 101])
def test_from_loader(records):
    loader = DataLoader(TensorDataset(torch.zeros(records)), batch_size=7)
    sampling = PoissonSampling.from_loader(loader)
    assert sampling == PoissonSampling(records, 1 / len(loader), len(loader))
    assert sampling.expected_batch_size == records / len(loader)


def test_expected_batch_size_is_not_rounded():
    assert PoissonSampling(10, 0.25, 3).expected_batch_size == 2.5


def test_event_counts_draws():
    sampling = PoissonSampling(10, 0.25, 4)
    draws = [Draw(0, 1, 2), Draw(1, 2, 0)]
    assert sampling.event(1.5, draws) == PoissonRelease(1.5, 0.25, draws=2)
    with pytest.raises(SamplingError, match="names no draw"):
        sampling.event(1.5, [])


def test_description():
    text = PoissonSampling(10, 0.25, 4).description
    assert "amplification by sampling is claimed" in text
    assert "not claimed" in PoissonSampling(10, 1.0, 1).description


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.5, 1), "records is 0"),
        ((1, 0.5, 0), "steps_per_epoch is 0"),
        ((1, 0.0, 1), "sample_rate is 0.0"),
        ((1, 1.1, 1), "sample_rate is 1.1"),
        ((1, float("nan"), 1), "sample_rate is nan"),
    ],
)
def test_values_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        PoissonSampling(*arguments)


class TestManyRecords:
    """A batch is drawn by the gaps between its records. Bounds are 6.5 standard deviations: false alarms under 1e-9."""

    @pytest.mark.parametrize(("records", "rate"), [(10**9, 1e-6), (10**12, 1e-9), (2**21, 2.0**-6), (10**15, 1e-12)])
    def test_how_many_and_where(self, records, rate):
        generator = torch.Generator().manual_seed(5)
        runs = 20
        batches = [torch.tensor(skipping(records, rate, generator)) for _ in range(runs)]
        assert all(bool((batch[1:] > batch[:-1]).all()) and int(batch[-1]) < records for batch in batches)
        total, expected = sum(map(len, batches)), runs * records * rate
        assert abs(total - expected) < 6.5 * expected**0.5
        tenths = torch.histc(torch.cat(batches).double() / records, 10, 0.0, 1.0)
        assert float((tenths - expected / 10).abs().max()) < 6.5 * (expected / 10) ** 0.5

    def test_gaps_are_geometric(self):
        """At a rate of 1e-9 a comparison of float32 numbers, or a logarithm on the wrong side, would be far off."""
        generator = torch.Generator().manual_seed(6)
        rate = 1e-9
        places = torch.tensor(skipping(10**14, rate, generator), dtype=torch.float64)
        gaps = places.diff() * rate
        n = len(gaps)
        assert abs(float(gaps.mean()) - 1) < 6.5 / n**0.5
        for quantile in (1e-3, 0.1, 0.5, 0.99):
            share = float((gaps <= -math.log1p(-quantile)).double().mean())
            assert abs(share - quantile) < 6.5 * (quantile * (1 - quantile) / n) ** 0.5

    def test_records_join_independently(self):
        generator = torch.Generator().manual_seed(7)
        rate, runs = 2.0**-6, 60
        joined = torch.zeros(runs, 2**20)
        for row in joined:
            row[skipping(2**20, rate, generator)] = 1.0
        centred, variance = joined - rate, rate * (1 - rate)
        for distance in (1, 2, 63, 64):
            products = centred[:, :-distance] * centred[:, distance:]
            assert abs(float(products.mean())) < 6.5 * variance / products.numel() ** 0.5
        steps = centred[:-1] * centred[1:]
        assert abs(float(steps.mean())) < 6.5 * variance / steps.numel() ** 0.5

    def test_large_data_sets_are_drawn_so(self, monkeypatch):
        called = []
        monkeypatch.setattr(poisson, "skipping", lambda *args: called.append(args[:2]) or [])
        sampling = PoissonSampling(records=10**9, sample_rate=1e-6, steps_per_epoch=3)
        assert list(sampling.batches(torch.Generator())) == [[], [], []]
        assert called == [(10**9, 1e-6)] * 3
        few = PoissonSampling(records=1000, sample_rate=1e-6, steps_per_epoch=1)
        list(few.batches(torch.Generator()))
        assert len(called) == 3
