import torch

from tacit.sampling import EpochSampling, PoissonSampling
from tacit.sampling.handouts import EpochIndices, Handout, HandoutSampler


def test_whole_batches():
    indices = EpochIndices(iter([[1, 2, 3], []]), None)
    assert list(indices) == [[1, 2, 3], []]
    assert list(indices.waiting) == [Handout(3, 3, True, True), Handout(0, 0, True, True)]


def test_split_batches():
    indices = EpochIndices(iter([[1, 2, 3, 4, 5], [], [6, 7]]), 2)
    assert list(indices) == [[1, 2], [3, 4], [5], [], [6, 7]]
    assert list(indices.waiting) == [
        Handout(5, 2, True, False),
        Handout(5, 2, False, False),
        Handout(5, 1, False, True),
        Handout(0, 0, True, True),
        Handout(2, 2, True, True),
    ]


def test_waiting_is_filled_as_indices_are_drawn():
    indices = EpochIndices(iter([[1], [2], [3]]), None)
    next(indices)
    next(indices)
    assert len(indices.waiting) == 2


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
