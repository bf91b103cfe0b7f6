"""Several processes draw one batch over the whole data set, and part it."""

import math
from itertools import combinations

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tacit.errors import SamplingError
from tacit.sampling import DrawLog, Part, PoissonSampling, UserPoissonSampling, private_loader, whole
from tacit.sampling.handouts import EpochIndices

KEY = bytes(range(32))
RECORDS = 12


def loaders(count, sampling, records=RECORDS):
    data = TensorDataset(torch.arange(records))
    source = DataLoader(data, batch_size=2)
    return [private_loader(source, sampling, DrawLog(), part=Part(rank, count, KEY)) for rank in range(count)]


def rows(batch):
    return batch[0].tolist()


def test_parts_are_disjoint_and_make_up_one_batch_in_which_every_record_is_by_an_independent_coin():
    sampling = PoissonSampling(RECORDS, 0.25, 50)
    drawn = []
    own = loaders(3, sampling)
    for _ in range(40):
        for parts in zip(*own, strict=True):
            batch = [row for part in parts for row in rows(part)]
            assert len(set(batch)) == len(batch)
            drawn.append([float(record in batch) for record in range(RECORDS)])
    seen = torch.tensor(drawn, dtype=torch.float64)
    # Each mean is within 4.9 deviations but once in a million.
    bound = 4.9 * math.sqrt(0.25 * 0.75 / len(seen))
    assert float((seen.mean(0) - 0.25).abs().max()) < bound
    centred = seen - 0.25
    for one, other in combinations(range(RECORDS), 2):
        together = float((centred[:, one] * centred[:, other]).mean())
        assert abs(together) < 4.9 * 0.25 * 0.75 / math.sqrt(len(seen))
    assert abs(float((centred[1:] * centred[:-1]).mean())) < 4.9 * 0.1875 / math.sqrt(seen[1:].numel())


def test_a_process_that_leaves_an_epoch_early_draws_the_next_like_the_others():
    own = loaders(2, PoissonSampling(RECORDS, 0.5, 4))
    whole_of_it = [rows(batch) for batch in own[0]]
    next(iter(own[1]))
    second = [sorted(rows(a) + rows(b)) for a, b in zip(*own, strict=True)]
    alone = [sorted(rows(batch)) for batch in list(loaders(1, PoissonSampling(RECORDS, 0.5, 4))[0])]
    assert len(whole_of_it) == 4
    assert second != alone  # another epoch
    again = loaders(2, PoissonSampling(RECORDS, 0.5, 4))
    for loader in again:
        list(loader)
    assert second == [sorted(rows(a) + rows(b)) for a, b in zip(*again, strict=True)]


def test_all_processes_have_as_many_pieces():
    sampling = PoissonSampling(20, 0.5, 4)
    batches = [[], [1], [1, 2, 3], [1, 2, 3, 4, 5], list(range(13))]
    parts = [EpochIndices(sampling, iter(batches), 2, Part(rank, 2, KEY)) for rank in range(2)]
    pieces = [list(part) for part in parts]
    assert pieces[0] == [[], [1], [1, 3], [1, 3], [5], [0, 2], [4, 6], [8, 10], [12]]
    assert pieces[1] == [[], [], [2], [2, 4], [], [1, 3], [5, 7], [9, 11], []]
    for part in parts:
        assert [one.first for one in part.waiting] == [True] * 4 + [False] + [True] + [False] * 3
        assert [one.last for one in part.waiting] == [True] * 3 + [False] + [True] + [False] * 3 + [True]


def test_rows_of_one_user_go_to_one_process():
    users = UserPoissonSampling(torch.tensor([0, 0, 0, 1, 2, 2]), 0.5, 4, most=3)
    parts = [EpochIndices(users, iter([[0, 1, 2, 3, 4, 5]]), 2, Part(rank, 2, KEY)) for rank in range(2)]
    pieces = [list(part) for part in parts]
    assert pieces == [[[0, 1, 2], [4, 5]], [[3], []]]
    assert [[one.records for one in part.waiting] for part in parts] == [[1, 1], [1, 0]]


def test_a_distributed_sampler_of_one_process_is_replaced():
    data = TensorDataset(torch.arange(10))
    own = DataLoader(data, batch_size=3, sampler=DistributedSampler(data, num_replicas=1, rank=0))
    assert PoissonSampling.from_loader(own) == PoissonSampling(10, 0.25, 4)
    assert whole(DataLoader(data)).dataset is data


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (lambda data: DistributedSampler(data, num_replicas=2, rank=0), "among 2 processes, and 1 train"),
        (lambda data: DistributedSampler([0] * 10, num_replicas=1, rank=0), "is of another data set"),
    ],
)
def test_other_distributed_samplers_are_refused(sampler, words):
    data = TensorDataset(torch.arange(10))
    with pytest.raises(SamplingError, match=words):
        PoissonSampling.from_loader(DataLoader(data, sampler=sampler(data)))
