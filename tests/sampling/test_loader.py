import copy
import pickle
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, get_worker_info

from tacit.errors import ConfigurationError, SamplingError
from tacit.sampling import Draw, DrawLog, EpochSampling, PoissonSampling, PrivateLoader, private_loader

DATA = TensorDataset(torch.arange(40), torch.arange(40) * 2.0)
WORKERS = [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]


def first_worker_only(worker: int) -> None:
    get_worker_info().dataset.tensors = (torch.arange(40) + 100, torch.arange(40) * 2.0)


def collate_first(records: list[Any]) -> torch.Tensor:
    return torch.stack([x for x, _ in records])


def private(batch_size: int = 8, seed: int | None = 0, **options: Any) -> PrivateLoader:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    source = DataLoader(DATA, batch_size, generator=generator, **options)
    return private_loader(source, PoissonSampling.from_loader(source), DrawLog())


def rows(loader: DataLoader[Any]) -> list[list[int]]:
    return [x.tolist() for x, _ in loader]


@pytest.mark.parametrize("options", WORKERS)
def test_draws_follow_the_batches_handed_out(options):
    loader = private(batch_size=2, **options)
    index = 0
    for epoch in (1, 2):
        sizes = []
        for place, (x, y) in enumerate(loader):
            assert loader.draws.current == Draw(index, epoch, len(x), place)
            assert loader.draws.physical_records == len(x)
            assert torch.equal(y, x * 2.0)
            sizes.append(len(x))
            index += 1
        assert len(sizes) == len(loader) == 20
        assert 0 in sizes
        assert loader.epoch == epoch


@pytest.mark.parametrize("options", WORKERS)
def test_break_and_iterate_again(options):
    loader = private(batch_size=2, **options)
    for step, _ in enumerate(loader):
        if step == 2:
            break
    assert loader.draws.current.index == 2
    for place, (x, _) in enumerate(loader):
        assert loader.draws.current == Draw(3 + place, 2, len(x), place)
    assert loader.draws.current.index == 22


def test_workers_draw_what_the_main_process_draws():
    assert rows(private()) == rows(private(num_workers=2))


def test_two_iterations_at_once_keep_their_own_order():
    loader = private(batch_size=2)
    for place, ((x, _), (other, _)) in enumerate(zip(loader, loader, strict=True)):
        assert loader.draws.current == Draw(2 * place + 1, 2, len(other), place)
        assert len(x) >= 0


def test_two_iterations_at_once_on_persistent_workers_are_refused():
    loader = private(batch_size=2, num_workers=2, persistent_workers=True)
    first = iter(loader)
    next(first)
    second = iter(loader)
    next(second)
    with pytest.raises(SamplingError, match="iterated anew while an earlier iteration was going on"):
        next(first)
    assert len(list(second)) == 19


def test_user_generator_makes_sampling_reproducible():
    assert rows(private(seed=4)) == rows(private(seed=4))
    assert rows(private(seed=4)) != rows(private(seed=5))
    explicit = DataLoader(DATA, 8)
    sampling = PoissonSampling.from_loader(explicit)
    drawn = [rows(private_loader(explicit, sampling, DrawLog(), torch.Generator().manual_seed(9))) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_global_seed_does_not_make_sampling_predictable():
    torch.manual_seed(0)
    first = rows(private(seed=None))
    torch.manual_seed(0)
    assert rows(private(seed=None)) != first


def test_epochs_differ():
    loader = private()
    assert rows(loader) != rows(loader)


def test_empty_batches_have_the_structure_of_the_others():
    for options in ({}, {"num_workers": 2}):
        for x, y in private(batch_size=1, **options):
            assert x.dtype == torch.int64
            assert y.shape == x.shape


def test_settings_of_the_source_are_kept():
    options: dict[str, Any] = {
        "num_workers": 1,
        "timeout": 60,
        "prefetch_factor": 3,
        "persistent_workers": True,
        "multiprocessing_context": "fork",
        "worker_init_fn": first_worker_only,
        "collate_fn": collate_first,
    }
    loader = private(batch_size=4, **options)
    source = loader.source
    for name in options.keys() - {"collate_fn"}:
        assert getattr(loader, name) == getattr(source, name)
    assert loader.dataset is DATA
    assert loader.generator is source.generator
    batches = list(loader)
    assert all(isinstance(x, torch.Tensor) for x in batches)
    assert all(x >= 100 for batch in batches for x in batch.tolist())


def test_own_batches_are_counted_likewise():
    source = DataLoader(DATA, 16, shuffle=True)
    loader = private_loader(source, EpochSampling.from_loader(source), DrawLog())
    for _ in range(2):
        assert [(loader.draws.current.epoch, len(x)) for x, _ in loader] == [(loader.epoch, n) for n in (16, 16, 8)]


def test_resume_goes_on_counting():
    loader = private()
    loader.resume(7)
    next(iter(loader))
    assert loader.draws.current.epoch == 8
    with pytest.raises(ConfigurationError, match="Cannot resume at epoch 3: epoch 8 has begun"):
        loader.resume(3)


@pytest.mark.parametrize("options", [{}, {"num_workers": 1, "persistent_workers": True}])
def test_no_iteration_goes_on_when_a_run_is_resumed(options):
    """Its batches would be counted with those of the pass that has its number."""
    loader = private(batch_size=4, **options)
    batches = iter(loader)
    next(batches)
    loader.draws.used(1, fresh=True, piece=loader.draws.at_hand)
    loader.resume(3)
    assert loader.draws.current is None
    assert not loader.draws.contributed
    with pytest.raises(SamplingError, match="checkpoint was loaded while this iteration"):
        next(batches)
    next(iter(loader))
    assert loader.draws.current.epoch == 4


def test_epoch_counts_iterations_that_began():
    loader = private()
    iter(loader)
    assert loader.epoch == 0


def test_sampling_for_another_dataset_is_refused():
    with pytest.raises(SamplingError, match="for 41 records and the dataset has 40"):
        private_loader(DataLoader(DATA), PoissonSampling(41, 0.5, 2), DrawLog())


def test_error_of_the_dataset_ends_the_iteration():
    source = DataLoader([1, 2, "x", None], 1)
    loader = private_loader(source, EpochSampling.from_loader(source), DrawLog())
    batches = iter(loader)
    assert [len(next(batches)) for _ in range(3)] == [1, 1, 1]
    with pytest.raises(TypeError):
        next(batches)
    assert loader.draws.current.index == 2


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_would_count_its_epochs_alike(copied):
    with pytest.raises(ConfigurationError, match="accounted as one pass"):
        copied(private())
