import math
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tacit.errors import ConfigurationError
from tacit.sampling import (
    BatchMemoryManager,
    DrawLog,
    EpochSampling,
    PoissonSampling,
    PrivateLoader,
    private_loader,
)

DATA = TensorDataset(torch.arange(1, 61))
WORKERS = [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]


class SummingOptimizer:
    """Sums what it is given as the gradient, and releases it as an optimizer would."""

    def __init__(self, draws: DrawLog) -> None:
        self.draws = draws
        self.held = self.keep = False
        self.pending: list[int] = []
        self.released: list[list[int]] = []
        self.discarded: list[list[int]] = []

    def hold_release(self, hold: bool) -> None:
        self.held = hold

    def discard_pending(self) -> None:
        self.discarded.append(self.pending)
        self.pending, self.keep = [], False

    def zero_grad(self) -> None:
        if not self.keep:
            self.pending = []
        self.keep = False

    def backward(self, x: torch.Tensor) -> None:
        assert len(x) == self.draws.physical_records
        self.draws.used(0, fresh=not self.pending, piece=self.draws.at_hand)
        self.pending = self.pending + x.tolist()

    def step(self) -> None:
        if self.held:
            self.keep = True
            return
        self.draws.take()
        self.draws.released()
        self.released.append(self.pending)


def private(steps: int = 6, seed: int = 0, **options: Any) -> PrivateLoader:
    source = DataLoader(DATA, math.ceil(60 / steps), generator=torch.Generator().manual_seed(seed), **options)
    return private_loader(source, PoissonSampling.from_loader(source), DrawLog())


def manage(loader: Any, size: Any, optimizer: SummingOptimizer) -> BatchMemoryManager:
    return BatchMemoryManager(data_loader=loader, max_physical_batch_size=size, optimizer=optimizer)


def logical(steps: int = 6, seed: int = 0) -> list[list[int]]:
    return [x.tolist() for (x,) in private(steps, seed)]


def train(batches: Any, optimizer: SummingOptimizer) -> None:
    for (x,) in batches:
        optimizer.zero_grad()
        optimizer.backward(x)
        optimizer.step()


@pytest.mark.parametrize("options", WORKERS)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_physical_batches_sum_to_the_logical_ones(options, size):
    loader = private(**options)
    optimizer = SummingOptimizer(loader.draws)
    with manage(loader, size, optimizer) as batches:
        assert len(batches) == 6
        assert batches.dataset is DATA
        sizes = []

        def watched():
            for batch in batches:
                sizes.append(len(batch[0]))
                yield batch

        train(watched(), optimizer)
    assert optimizer.released == logical()
    assert max(sizes) <= size
    assert len(sizes) == sum(max(1, math.ceil(len(batch) / size)) for batch in optimizer.released)
    assert loader.draws.current.index == 5
    assert loader.draws.current.records == len(optimizer.released[-1])
    assert optimizer.discarded == []
    assert not optimizer.held


def test_empty_logical_batches_are_released():
    loader = private(steps=60)
    optimizer = SummingOptimizer(loader.draws)
    with manage(loader, 1, optimizer) as batches:
        train(batches, optimizer)
    assert optimizer.released == logical(steps=60)
    assert [] in optimizer.released


def test_two_epochs_then_whole_batches_again():
    loader = private()
    optimizer = SummingOptimizer(loader.draws)
    with manage(loader, 3, optimizer) as batches:
        train(batches, optimizer)
        train(batches, optimizer)
    assert loader.epoch == 2
    train(loader, optimizer)
    assert len(optimizer.released) == 18
    assert loader.draws.current.index == 17


def test_own_batches():
    source = DataLoader(DATA, 25)
    loader = private_loader(source, EpochSampling.from_loader(source), DrawLog())
    optimizer = SummingOptimizer(loader.draws)
    with manage(loader, 10, optimizer) as batches:
        train(batches, optimizer)
    assert [len(batch) for batch in optimizer.released] == [25, 25, 10]


@pytest.mark.parametrize("options", WORKERS)
def test_break_in_mid_logical_batch(options):
    loader = private(**options)
    optimizer = SummingOptimizer(loader.draws)

    def leave_early() -> None:
        with manage(loader, 2, optimizer) as batches:
            for step, (x,) in enumerate(batches):
                optimizer.zero_grad()
                optimizer.backward(x)
                optimizer.step()
                if step == 1:
                    break

    with pytest.warns(RuntimeWarning, match="epoch 1, after 2 of its physical batches.*nothing of it was rel"):
        leave_early()
    assert optimizer.released == []
    assert optimizer.discarded == [logical()[0][:4]]
    assert not optimizer.held
    with manage(loader, 2, optimizer) as batches:
        train(batches, optimizer)
    assert len(optimizer.released) == 6
    assert len(optimizer.discarded) == 1


def test_break_after_a_whole_logical_batch():
    loader = private()
    optimizer = SummingOptimizer(loader.draws)
    with manage(loader, 3, optimizer) as batches:
        for (x,) in batches:
            optimizer.zero_grad()
            optimizer.backward(x)
            optimizer.step()
            if optimizer.released:
                break
    assert optimizer.discarded == []


def test_break_before_the_last_step_of_a_logical_batch():
    loader = private()
    optimizer = SummingOptimizer(loader.draws)

    def leave_early() -> None:
        with manage(loader, 3, optimizer) as batches:
            for (x,) in batches:
                optimizer.zero_grad()
                optimizer.backward(x)
                if not optimizer.held:
                    break
                optimizer.step()

    with pytest.warns(RuntimeWarning, match="thrown away"):
        leave_early()
    assert optimizer.discarded == [logical()[0]]


def test_new_loop_in_mid_logical_batch():
    loader = private()
    optimizer = SummingOptimizer(loader.draws)
    with manage(loader, 2, optimizer) as batches:
        first = iter(batches)
        (x,) = next(first)
        optimizer.backward(x)
        optimizer.step()
        second = iter(batches)
        with pytest.warns(RuntimeWarning, match="after 1 of its physical batches"):
            next(second)
        with pytest.raises(ConfigurationError, match="one loop at a time"):
            next(first)
        assert optimizer.held
        train(second, optimizer)
    assert optimizer.discarded == [x.tolist()]


def test_iterator_kept_beyond_the_block_is_refused():
    loader = private()
    optimizer = SummingOptimizer(loader.draws)
    with manage(loader, 100, optimizer) as batches:
        kept = iter(batches)
        next(kept)
    with pytest.raises(ConfigurationError, match="the with block was left"):
        next(kept)
    with pytest.raises(ConfigurationError, match="the with block was left"):
        list(batches)


def fail(loader: PrivateLoader, optimizer: SummingOptimizer) -> None:
    with manage(loader, 2, optimizer) as batches:
        for (x,) in batches:
            optimizer.backward(x)
            raise ZeroDivisionError


def test_exception_with_a_warning():
    loader = private()
    optimizer = SummingOptimizer(loader.draws)
    with pytest.raises(ZeroDivisionError), pytest.warns(RuntimeWarning, match="thrown away") as warned:
        fail(loader, optimizer)
    assert warned[0].filename == __file__
    assert optimizer.discarded == [logical()[0][:2]]
    assert not optimizer.held


def test_exception_is_not_masked_by_a_warning_turned_error():
    loader = private()
    optimizer = SummingOptimizer(loader.draws)
    with pytest.raises(ZeroDivisionError) as caught:
        fail(loader, optimizer)  # pytest runs with warnings as errors
    assert "nothing of it was released" in caught.value.__notes__[0]
    assert optimizer.discarded == [logical()[0][:2]]
    assert not optimizer.held


def test_warning_turned_error_leaves_everything_in_order():
    loader = private()
    optimizer = SummingOptimizer(loader.draws)

    def leave_early() -> None:
        with manage(loader, 2, optimizer) as batches:
            next(iter(batches))

    with pytest.raises(RuntimeWarning):
        leave_early()
    assert not optimizer.held
    assert not loader.managed


def test_enclosing_generator_closed():
    loader = private()
    optimizer = SummingOptimizer(loader.draws)

    def training():
        with manage(loader, 2, optimizer) as batches:
            yield from batches

    run = training()
    next(run)
    with pytest.warns(RuntimeWarning, match="thrown away"):
        run.close()
    assert optimizer.discarded == [[]]


def test_discarded_draw_is_forgotten():
    loader = private()
    with pytest.raises(ZeroDivisionError):
        fail(loader, SummingOptimizer(loader.draws))
    next(iter(loader))
    assert [draw.index for draw in loader.draws.take()] == [1]


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_sizes_refused(size):
    loader = private()
    with pytest.raises(ConfigurationError, match="max_physical_batch_size is"):
        manage(loader, size, SummingOptimizer(loader.draws))


def test_other_loaders_refused():
    with pytest.raises(ConfigurationError, match="got a DataLoader; only the loader that make_private"):
        manage(DataLoader(DATA), 2, SummingOptimizer(DrawLog()))


def test_nested_managers_refused():
    loader = private()
    optimizer = SummingOptimizer(loader.draws)
    manager = manage(loader, 2, optimizer)
    with manager as batches:
        with pytest.raises(ConfigurationError, match="Another BatchMemoryManager is splitting"):
            manager.__enter__()
        with pytest.raises(ConfigurationError, match="do not nest managers"):
            BatchMemoryManager(data_loader=batches, max_physical_batch_size=2, optimizer=optimizer)
    with manager:
        assert loader.managed
    assert not loader.managed
