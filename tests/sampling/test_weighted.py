import pytest
import torch
from tests.sampling.tables import evenly, independent, joined, likely
from torch.utils.data import DataLoader, TensorDataset

from tacit.accounting import PoissonRelease
from tacit.errors import ConfigurationError, SamplingError
from tacit.sampling import Draw, WeightedPoissonSampling

STEPS = 2000
RATES = torch.tensor([0.0, 1.0, *[0.05] * 199, *[0.3] * 199], dtype=torch.float64)


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return joined(WeightedPoissonSampling(RATES, STEPS))


def test_each_record_has_its_rate(table):
    assert not bool(table[:, 0].any())
    assert bool(table[:, 1].all())
    for rate in (0.05, 0.3):
        mine = table[:, rate == RATES]
        assert likely(mine, rate)
        assert evenly(mine.sum(0), STEPS * rate * (1 - rate), freedom=mine.shape[1] - 1)
        assert evenly(mine.sum(1), mine.shape[1] * rate * (1 - rate), freedom=STEPS - 1)


def test_records_and_steps_are_independent(table):
    mine = table[:, RATES == 0.3]
    assert independent(mine[:, 0:198:2], mine[:, 1:198:2], 0.3)
    assert independent(mine[0::2], mine[1::2], 0.3)


def test_from_loader():
    loader = DataLoader(TensorDataset(torch.zeros(6)), batch_size=2)
    found = WeightedPoissonSampling.from_loader(loader, weights=[1, 1, 1, 1, 2, 2])
    assert found.rates.tolist() == [0.25] * 4 + [0.5] * 2
    assert found.expected_batch_size == 2.0
    assert found.amplified
    assert "at most 0.5" in found.description
    assert found.event(1.0, [Draw(0, 1, 3)]) == PoissonRelease(1.0, 0.5)
    with pytest.raises(ConfigurationError, match="rate of 1.43, above 1"):
        WeightedPoissonSampling.from_loader(loader, weights=[1, 1, 1, 1, 1, 12.5])
    for weights in ([1.0], [-1, 1, 1, 1, 1, 1], [0] * 6):
        with pytest.raises(ConfigurationError, match="one weight of at least 0 for each record"):
            WeightedPoissonSampling.from_loader(loader, weights=weights)
    with pytest.raises(SamplingError, match="names no draw"):
        found.event(1.0, [])


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (torch.tensor([1, 0]), "vector of floats"),
        (torch.zeros(2, 2), "vector of floats"),
        (torch.tensor([0.5, 1.1]), "probabilities"),
        (torch.tensor([0.5, float("nan")]), "probabilities"),
        (torch.zeros(3), "not all of them 0"),
    ],
)
def test_values_refused(rates, message):
    with pytest.raises(ConfigurationError, match=message):
        WeightedPoissonSampling(rates, 2)


def test_a_rate_of_float32_is_taken_as_it_is():
    rates = torch.tensor([0.1], dtype=torch.float32)
    assert WeightedPoissonSampling(rates, 1).event(1.0, [Draw(0, 1, 1)]) == PoissonRelease(1.0, float(rates.double()))


def test_rates_are_not_the_callers_to_change():
    rates = torch.full((4,), 0.5, dtype=torch.float64)
    sampling = WeightedPoissonSampling(rates, 1)
    rates.mul_(0.01)
    assert sampling.event(1.0, [Draw(0, 1, 1)]) == PoissonRelease(1.0, 0.5)
    assert sampling.expected_batch_size == 2.0
