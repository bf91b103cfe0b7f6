import pytest
import torch
from scipy.stats import binom
from tests.sampling.tables import evenly, independent, joined, likely
from torch.utils.data import DataLoader, TensorDataset

from tacit.accounting import TruncatedRelease
from tacit.errors import ConfigurationError, SamplingError
from tacit.sampling import Draw, TruncatedPoissonSampling

RECORDS, RATE, STEPS, LARGEST = 400, 0.1, 2000, 42


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return joined(TruncatedPoissonSampling(RECORDS, RATE, STEPS, LARGEST))


def test_sizes_are_those_of_poisson_batches_cut(table):
    sizes = table.sum(1)
    assert int(sizes.max()) == LARGEST
    assert likely(sizes == LARGEST, binom.sf(LARGEST - 1, RECORDS, RATE))
    for size in (30, 36, 40):
        assert likely(sizes == size, binom.pmf(size, RECORDS, RATE))


def test_every_record_is_as_likely_also_in_batches_that_were_cut(table):
    for rows in (table, table[table.sum(1) == LARGEST]):
        rate = float(rows.double().mean())
        assert evenly(rows.sum(0), len(rows) * rate * (1 - rate), freedom=RECORDS - 1)


def test_steps_are_independent(table):
    assert independent(table[0::2, 3], table[1::2, 3], float(table.double().mean()))


def test_from_loader():
    loader = DataLoader(TensorDataset(torch.zeros(1000)), batch_size=100)
    found = TruncatedPoissonSampling.from_loader(loader)
    assert found == TruncatedPoissonSampling(1000, 0.1, 10, 157)  # 100 + 6 · √90
    assert found.padded_size == 157
    assert found.expected_batch_size == 100.0
    assert found.amplified
    assert "more than 157" in found.description
    assert "padded with blank rows" in found.description
    plain = TruncatedPoissonSampling.from_loader(loader, largest=120, padding=False)
    assert (plain.largest, plain.padded_size) == (120, None)
    assert "padded" not in plain.description
    assert TruncatedPoissonSampling.from_loader(DataLoader(loader.dataset, batch_size=1000)).largest == 1000


def test_event():
    sampling = TruncatedPoissonSampling(1000, 0.1, 10, 157)
    assert sampling.event(1.0, [Draw(0, 1, 99)]) == TruncatedRelease(1.0, 0.1, 1000, 157)
    with pytest.raises(SamplingError, match="names no draw"):
        sampling.event(1.0, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.5, 1, 5), "records"),
        ((9, 0.0, 1, 5), "sample_rate"),
        ((9, 1.5, 1, 5), "sample_rate"),
        ((9, 0.5, 0, 5), "steps_per_epoch"),
        ((9, 0.5, 1, 0), "largest"),
    ],
)
def test_values_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        TruncatedPoissonSampling(*arguments)
