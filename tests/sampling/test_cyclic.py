import pytest
import torch
from tests.sampling.tables import evenly, independent, joined, likely
from torch.utils.data import DataLoader, TensorDataset

from tacit.accounting import CyclicRelease
from tacit.errors import ConfigurationError, SamplingError
from tacit.sampling import CyclicPoissonSampling, Draw

RECORDS, GROUPS, RATE, STEPS = 600, 3, 0.2, 1200


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return joined(CyclicPoissonSampling(RECORDS, GROUPS, RATE, STEPS))


def test_batches_take_groups_in_turn(table):
    for group in range(GROUPS):
        others = [i for i in range(RECORDS) if i % GROUPS != group]
        assert not bool(table[group::GROUPS][:, others].any())


def test_rates(table):
    for group in range(GROUPS):
        mine = table[group::GROUPS, group::GROUPS]
        assert likely(mine, RATE)
        assert evenly(mine.sum(0), len(mine) * RATE * (1 - RATE), freedom=mine.shape[1] - 1)
        assert evenly(mine.sum(1), mine.shape[1] * RATE * (1 - RATE), freedom=len(mine) - 1)


def test_records_and_turns_are_independent(table):
    mine = table[0::GROUPS, 0::GROUPS]
    assert independent(mine[:, 0::2], mine[:, 1::2], RATE)
    assert independent(mine[0::2], mine[1::2], RATE)


def test_from_loader():
    loader = DataLoader(TensorDataset(torch.zeros(50)), batch_size=7)
    found = CyclicPoissonSampling.from_loader(loader, groups=4)
    assert found == CyclicPoissonSampling(50, 4, 0.5, 8)
    assert found.expected_batch_size == 50 / 8
    assert found.amplified
    assert "50 records in 4 groups" in found.description
    with pytest.raises(ConfigurationError, match="more than whole"):
        CyclicPoissonSampling.from_loader(loader, groups=9)


def test_event():
    sampling = CyclicPoissonSampling(50, 4, 0.5, 8)
    assert sampling.event(1.0, [Draw(0, 1, 6, 6)]) == CyclicRelease(1.0, 0.5, 2, 1)
    assert sampling.event(1.0, [Draw(0, 1, 6, 2), Draw(1, 1, 6, 6)]) == CyclicRelease(1.0, 0.5, 2, 1, draws=2)
    with pytest.raises(SamplingError, match=r"of the groups \[1, 2\]"):
        sampling.event(1.0, [Draw(0, 1, 6, 1), Draw(1, 1, 6, 2)])
    for draws in ([], [Draw(0, 1, 6, 2), Draw(1, 2, 6, 2)]):
        with pytest.raises(SamplingError, match="only within one epoch"):
            sampling.event(1.0, draws)


@pytest.mark.parametrize("place", [0, 1, 7, 9])
@pytest.mark.parametrize("releases", [1, 3, 10, 24, 51])
def test_what_is_planned_is_what_will_be_recorded(place, releases):
    sampling = CyclicPoissonSampling(50, 4, 0.5, 10)
    recorded: dict[CyclicRelease, int] = {}
    for step in range(place, place + releases):
        epoch, at = divmod(step, sampling.steps_per_epoch)
        release = sampling.event(1.0, [Draw(0, 1 + epoch, 5, at)])
        recorded[release] = recorded.get(release, 0) + 1
    assert dict(sampling.planned(1.0, releases, place=place)) == recorded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 0.5, 1), "records"),
        ((5, 6, 0.5, 1), "groups is 6"),
        ((5, 0, 0.5, 1), "groups"),
        ((5, 2, 0.0, 1), "sample_rate"),
        ((5, 2, 0.5, 0), "steps_per_epoch"),
    ],
)
def test_values_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        CyclicPoissonSampling(*arguments)
