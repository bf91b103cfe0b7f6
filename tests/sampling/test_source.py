from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from tacit.errors import SamplingError
from tacit.sampling import DrawLog, PoissonSampling, check_source, private_loader

DATA = TensorDataset(torch.arange(10))


class Stream(IterableDataset[int]):
    def __iter__(self):
        return iter(range(3))


class NoLength(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


class MyRandomSampler(RandomSampler):
    pass


class MyBatchSampler(BatchSampler):
    pass


class MovingLoader(DataLoader[Any]):
    def __iter__(self):
        return super().__iter__()


class PlainSubclass(DataLoader[Any]):
    pass


def already_private() -> DataLoader[Any]:
    loader = DataLoader(DATA, batch_size=2)
    return private_loader(loader, PoissonSampling.from_loader(loader), DrawLog())


REFUSED = {
    "no loader": (lambda: [1, 2], "found list"),
    "private": (already_private, "already private"),
    "iter": (lambda: MovingLoader(DATA), "MovingLoader overrides DataLoader.__iter__"),
    "iterable": (lambda: DataLoader(Stream()), "Stream is an IterableDataset.*map-style"),
    "no len": (lambda: DataLoader(NoLength()), "NoLength has no __len__.*Define __len__"),
    "empty": (lambda: DataLoader(TensorDataset(torch.ones(0))), "TensorDataset is empty"),
    "batch_size=None": (lambda: DataLoader(DATA, batch_size=None), "batch_sampler=... or batch_size=None"),
    "batch_sampler": (
        lambda: DataLoader(DATA, batch_sampler=MyBatchSampler(SequentialSampler(DATA), 2, False)),
        "no privacy proof is known for batches drawn that way",
    ),
    "weighted": (
        lambda: DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 10, 10)),
        "WeightedRandomSampler.*weigh the loss",
    ),
    "subset": (
        lambda: DataLoader(DATA, sampler=SubsetRandomSampler([1, 2])),
        r"Use torch.utils.data.Subset\(dataset, indices\)",
    ),
    "distributed": (
        lambda: DataLoader(DATA, sampler=DistributedSampler(DATA, num_replicas=2, rank=0)),
        "parts batches among processes by itself",
    ),
    "replacement": (
        lambda: DataLoader(DATA, sampler=RandomSampler(DATA, replacement=True)),
        "Leave sampler= out",
    ),
    "num_samples": (
        lambda: DataLoader(DATA, sampler=RandomSampler(DATA, num_samples=5)),
        "over all 10 records",
    ),
    "other data": (lambda: DataLoader(DATA, sampler=SequentialSampler(range(4))), "SequentialSampler"),
    "other random data": (
        lambda: DataLoader(DATA, sampler=RandomSampler(range(5), num_samples=10)),
        "RandomSampler",
    ),
    "custom": (lambda: DataLoader(DATA, sampler=MyRandomSampler(DATA)), "sampler=MyRandomSampler"),
    "in_order": (
        lambda: DataLoader(DATA, batch_size=2, num_workers=1, in_order=False),
        "in_order=False.*in_order=True",
    ),
    "no batch": (lambda: DataLoader(DATA, batch_size=11, drop_last=True), "DataLoader"),
}


@pytest.mark.parametrize("poisson", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, poisson):
    make, message = REFUSED[case]
    with pytest.raises(SamplingError, match=message):
        check_source(make(), poisson=poisson)


def test_drop_last_is_refused_where_it_changes_the_rate():
    loader = DataLoader(DATA, batch_size=4, drop_last=True)
    with pytest.raises(SamplingError, match="drop_last=True, and 10 records are no multiple of its batch size 4"):
        check_source(loader, poisson=True)
    assert check_source(loader, poisson=False) == 10
    assert check_source(DataLoader(DATA, batch_size=5, drop_last=True), poisson=True) == 10


@pytest.mark.parametrize("poisson", [True, False])
def test_accepted(poisson):
    for loader in (
        DataLoader(DATA),
        DataLoader(DATA, batch_size=64, shuffle=True),
        DataLoader(DATA, sampler=RandomSampler(DATA)),
        DataLoader(DATA, num_workers=2),
        PlainSubclass(DATA),
    ):
        assert check_source(loader, poisson=poisson) == 10
