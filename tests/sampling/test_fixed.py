import pytest
import torch
from tests.sampling.tables import evenly, independent, joined, likely
from torch.utils.data import DataLoader, TensorDataset

from tacit.accounting import FixedSizeRelease, PoissonRelease
from tacit.errors import ConfigurationError, SamplingError
from tacit.sampling import Draw, FixedSizeSampling, FullBatchSampling
from tacit.sampling.fixed import random_part

RECORDS, SIZE, STEPS = 400, 40, 2000
DATA = TensorDataset(torch.zeros(50))


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return joined(FixedSizeSampling(RECORDS, SIZE, STEPS))


def test_every_batch_has_its_size(table):
    assert bool((table.sum(1) == SIZE).all())


def test_every_record_is_as_likely(table):
    rate = SIZE / RECORDS
    # Counts add up to a constant, so that they scatter by n / (n − 1) more than independent ones.
    assert evenly(table.sum(0), STEPS * rate * (1 - rate) * RECORDS / (RECORDS - 1), freedom=RECORDS - 1)


@pytest.mark.parametrize("distance", [1, 2, 100])
def test_every_pair_is_as_likely(table, distance):
    both = table[:, :distance] & table[:, distance : 2 * distance]
    for column in both.T[:5]:
        assert likely(column, SIZE / RECORDS * (SIZE - 1) / (RECORDS - 1))


def test_steps_are_independent(table):
    assert independent(table[0::2, 3], table[1::2, 3], SIZE / RECORDS)


def test_batches_ascend_and_differ():
    batches = list(FixedSizeSampling(9, 4, 20).batches(torch.Generator().manual_seed(0)))
    assert all(batch == sorted(set(batch)) for batch in batches)
    assert len({tuple(batch) for batch in batches}) > 5


def test_every_set_of_two_of_four_is_drawn():
    generator = torch.Generator().manual_seed(1)
    drawn = [tuple(random_part([5, 6, 7, 8], 2, generator)) for _ in range(6000)]
    assert len(set(drawn)) == 6
    for each in set(drawn):
        assert likely(torch.tensor([one == each for one in drawn]), 1 / 6)
    assert random_part(range(3), 0, generator) == []
    assert random_part(range(3), 3, generator) == [0, 1, 2]


def test_from_loader():
    found = FixedSizeSampling.from_loader(DataLoader(DATA, batch_size=7))
    assert found == FixedSizeSampling(50, 7, 8)
    assert found.expected_batch_size == 7.0
    assert found.amplified
    assert FixedSizeSampling.from_loader(DataLoader(DATA, batch_size=70)).batch_size == 50
    assert not FixedSizeSampling(50, 50, 1).amplified
    assert "random set of 7 of 50" in found.description


def test_event():
    sampling = FixedSizeSampling(50, 7, 8)
    release = sampling.event(1.0, [Draw(0, 1, 7)])
    assert release == FixedSizeRelease(1.0, 50, 7)
    assert release.adjacencies == ("replace-one",)
    assert sampling.event(1.0, [Draw(0, 1, 7), Draw(1, 1, 7)]) == FixedSizeRelease(1.0, 50, 7, draws=2)
    with pytest.raises(SamplingError, match="names no draw"):
        sampling.event(1.0, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 1, 1), "records"), ((5, 0, 1), "batch_size"), ((5, 6, 1), "there are 5"), ((5, 5, 0), "steps_per_epoch")],
)
def test_values_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        FixedSizeSampling(*arguments)


def test_full_batches():
    sampling = FullBatchSampling.from_loader(DataLoader(DATA, batch_size=7))
    assert sampling == FullBatchSampling(50)
    assert list(FullBatchSampling(3, 2).batches(torch.Generator())) == [[0, 1, 2]] * 2
    assert sampling.expected_batch_size == 50.0
    assert not sampling.amplified
    assert "all 50 records" in sampling.description
    assert sampling.event(2.0, [Draw(0, 1, 50)]) == PoissonRelease(2.0, 1.0)
    with pytest.raises(ConfigurationError, match="records"):
        FullBatchSampling(0)
