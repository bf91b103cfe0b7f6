import pytest
import torch
from tests.sampling.tables import evenly, independent, joined, likely
from torch.utils.data import DataLoader, TensorDataset

from tacit.accounting import BallsInBinsRelease
from tacit.errors import ConfigurationError, SamplingError
from tacit.sampling import BallsInBinsSampling, Draw

RECORDS, BINS, EPOCHS = 2000, 8, 60


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    """(EPOCHS, BINS, RECORDS)."""
    return joined(BallsInBinsSampling(RECORDS, BINS), epochs=EPOCHS).view(EPOCHS, BINS, RECORDS)


def test_each_record_is_in_one_batch_of_an_epoch(table):
    assert bool((table.sum(1) == 1).all())


def test_each_batch_is_as_likely(table):
    for place in range(BINS):
        assert likely(table[:, place], 1 / BINS)
    counts = table.sum(0)
    assert evenly(counts[0], EPOCHS / BINS * (1 - 1 / BINS), freedom=RECORDS - 1)


def test_batch_sizes_vary_as_for_independent_records(table):
    sizes = table[:, 0].sum(1)
    assert evenly(sizes, RECORDS / BINS * (1 - 1 / BINS), freedom=EPOCHS - 1)


@pytest.mark.parametrize("distance", [1, 2, 50])
def test_records_choose_independently(table, distance):
    blocks = table[:, 0].reshape(EPOCHS, -1, 2, distance)
    assert independent(blocks[:, :, 0], blocks[:, :, 1], 1 / BINS)


def test_epochs_choose_independently(table):
    assert independent(table[0::2, 1], table[1::2, 1], 1 / BINS)
    assert independent(table[0::2, 1], table[1::2, 2], 1 / BINS)


def test_few_records_leave_batches_empty():
    batches = list(BallsInBinsSampling(3, 5).batches(torch.Generator().manual_seed(0)))
    assert len(batches) == 5
    assert [] in batches


def test_from_loader():
    found = BallsInBinsSampling.from_loader(DataLoader(TensorDataset(torch.zeros(50)), batch_size=7))
    assert found == BallsInBinsSampling(50, 8)
    assert found.expected_batch_size == 50 / 8
    assert found.amplified
    assert not BallsInBinsSampling(50, 1).amplified
    assert "one of 8 batches" in found.description


def test_event():
    sampling = BallsInBinsSampling(50, 8)
    assert sampling.event(1.0, [Draw(9, 2, 5, 1), Draw(10, 2, 5, 2)]) == BallsInBinsRelease(1.0, 8, 2, draws=2)
    with pytest.raises(SamplingError, match="disjoint only within one epoch"):
        sampling.event(1.0, [Draw(7, 1, 5, 7), Draw(8, 2, 5, 0)])


def test_what_is_planned_is_what_will_be_recorded():
    sampling = BallsInBinsSampling(50, 8)
    assert sampling.planned(1.0, 12, epoch=3, place=6) == [
        (BallsInBinsRelease(1.0, 8, 3), 2),
        (BallsInBinsRelease(1.0, 8, 4), 8),
        (BallsInBinsRelease(1.0, 8, 5), 2),
    ]


@pytest.mark.parametrize("arguments", [(0, 1), (5, 0), (5, 1.5)])
def test_values_refused(arguments):
    with pytest.raises(ConfigurationError, match="it counts something"):
        BallsInBinsSampling(*arguments)
