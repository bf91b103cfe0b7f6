import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from tacit.accounting.releases import EpochRelease
from tacit.errors import ConfigurationError, SamplingError
from tacit.sampling import Draw, DrawLog, EpochSampling, private_loader

DATA = TensorDataset(torch.arange(10))


def private(loader: DataLoader) -> DataLoader:
    return private_loader(loader, EpochSampling.from_loader(loader), DrawLog())


def rows(loader: DataLoader, epochs: int = 2) -> list[list[int]]:
    return [x.tolist() for _ in range(epochs) for (x,) in loader]


def test_each_record_once_per_epoch():
    for shuffle in (False, True):
        batches = list(EpochSampling(10, 4, 3, shuffle).batches(torch.Generator().manual_seed(0)))
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(index for batch in batches for index in batch) == list(range(10))


def test_sequential_and_dropped_last():
    assert list(EpochSampling(5, 2, 2).batches(torch.Generator())) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_those_of_the_source(drop_last):
    def with_generator() -> DataLoader:
        generator = torch.Generator().manual_seed(5)
        return DataLoader(DATA, 4, shuffle=True, drop_last=drop_last, generator=generator)

    def with_sampler() -> DataLoader:
        sampler = RandomSampler(DATA, generator=torch.Generator().manual_seed(6))
        return DataLoader(DATA, 4, sampler=sampler, drop_last=drop_last)

    for make in (with_generator, with_sampler):
        assert rows(private(make())) == rows(make())
        assert len(private(make())) == len(make())


def test_batches_are_those_of_the_source_under_the_global_seed():
    loader = DataLoader(DATA, 4, shuffle=True)
    copy = private(loader)
    torch.manual_seed(11)
    expected = rows(loader)
    torch.manual_seed(11)
    assert rows(copy) == expected


def test_from_loader():
    sampling = EpochSampling.from_loader(DataLoader(DATA, batch_size=4, shuffle=True))
    assert sampling == EpochSampling(10, 4, 3, shuffle=True)
    assert sampling.expected_batch_size == 4.0
    assert not sampling.amplified


def test_event_of_one_epoch():
    sampling = EpochSampling(10, 4, 3)
    assert sampling.event(0.8, [Draw(3, 2, 4), Draw(4, 2, 4)]) == EpochRelease(0.8, epoch=2)


@pytest.mark.parametrize("draws", [[], [Draw(2, 1, 2), Draw(3, 2, 4)]])
def test_event_of_other_than_one_epoch_is_refused(draws):
    with pytest.raises(SamplingError, match="disjoint only within one epoch"):
        EpochSampling(10, 4, 3).event(0.8, draws)


def test_description():
    text = EpochSampling(10, 4, 3, shuffle=True).description
    assert "no privacy amplification by sampling is claimed" in text
    assert "shuffled" in text


@pytest.mark.parametrize("steps", [1, 4])
def test_steps_that_do_not_fit_are_refused(steps):
    with pytest.raises(ConfigurationError, match="2 full batches and 2 records over"):
        EpochSampling(10, 4, steps)
