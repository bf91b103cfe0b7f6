import torch

from tacit.sampling import EpochSampling, PoissonSampling, TruncatedPoissonSampling, UserPoissonSampling
from tacit.sampling.handouts import EpochIndices, Handout, HandoutSampler

RECORDS = PoissonSampling(20, 0.5, 4)


def test_whole_batches():
    indices = EpochIndices(RECORDS, iter([[1, 2, 3], []]), None)
    assert list(indices) == [[1, 2, 3], []]
    assert list(indices.waiting) == [Handout(3, 3, True, True), Handout(0, 0, True, True)]


def test_split_batches():
    indices = EpochIndices(RECORDS, iter([[1, 2, 3, 4, 5], [], [6, 7]]), 2)
    assert list(indices) == [[1, 2], [3, 4], [5], [], [6, 7]]
    assert list(indices.waiting) == [
        Handout(5, 2, True, False),
        Handout(5, 2, False, False),
        Handout(5, 1, False, True),
        Handout(0, 0, True, True),
        Handout(2, 2, True, True),
    ]


def test_waiting_is_filled_as_indices_are_drawn():
    indices = EpochIndices(RECORDS, iter([[1], [2], [3]]), None)
    next(indices)
    next(indices)
    assert len(indices.waiting) == 2


def test_rows_of_one_user_are_never_parted():
    users = UserPoissonSampling(torch.tensor([0, 0, 0, 1, 2, 2]), 0.5, 4, most=3)
    indices = EpochIndices(users, iter([[0, 1, 2, 3, 4, 5]]), 2)
    assert list(indices) == [[0, 1, 2], [3], [4, 5]]
    assert [(one.logical_records, one.records, one.owners) for one in indices.waiting] == [
        (3, 1, (0, 0, 0)),
        (3, 1, (1,)),
        (3, 1, (2, 2)),
    ]
    assert [(one.first, one.last) for one in indices.waiting] == [(True, False), (False, False), (False, True)]


def test_padding_is_known():
    indices = EpochIndices(TruncatedPoissonSampling(20, 0.5, 4, largest=6), iter([[1, 2], []]), None)
    assert list(indices) == [[1, 2], []]
    assert [one.padding for one in indices.waiting] == [4, 6]


def test_asking_twice_draws_once():
    generator = torch.Generator().manual_seed(0)
    sampler = HandoutSampler(PoissonSampling(20, 0.5, 4), generator)
    state = generator.get_state()
    iter(sampler)
    used = iter(sampler)
    assert torch.equal(generator.get_state(), state)
    assert len(list(used)) == len(sampler) == 4
    assert sampler.latest is used


def test_no_generator_means_the_global_one():
    sampler = HandoutSampler(EpochSampling(20, 5, 4, shuffle=True), None)
    torch.manual_seed(1)
    first = list(sampler)
    torch.manual_seed(1)
    assert list(sampler) == first
    assert list(sampler) != first
