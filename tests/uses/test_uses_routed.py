"""Rows that each meet one matrix of a stack."""

import pytest
import torch
from torch import Tensor

from tacit.uses import Dense, Routed, Units, join


def make(B: int, T: int, d: int, p: int, E: int, *, flipped: bool = False) -> Routed:
    torch.manual_seed(0)
    a, g = torch.randn(B, T, d, dtype=torch.float64), torch.randn(B, T, p, dtype=torch.float64)
    return Routed(a, g, torch.randint(0, E, (B, T)), E, flipped=flipped)


def by_hand(use: Routed) -> Tensor:
    total = torch.zeros((use.samples, *use.shape), dtype=torch.float64)
    for b in range(use.samples):
        for t in range(use.a.shape[1]):
            outer = torch.outer(use.g[b, t], use.a[b, t])
            total[b, use.expert[b, t]] += outer.t() if use.flipped else outer
    return total


SIZES = pytest.mark.parametrize("sizes", [(3, 5, 4, 2, 6), (4, 4, 4, 4, 4), (1, 1, 2, 3, 1), (2, 7, 3, 3, 2)])


@SIZES
@pytest.mark.parametrize("flipped", [True, False])
def test_quantities_equal_those_of_dense_gradients(sizes: tuple[int, ...], flipped: bool) -> None:
    use = make(*sizes, flipped=flipped)
    dense, factors = by_hand(use), torch.rand(use.samples, dtype=torch.float64)
    torch.testing.assert_close(use.dense(), dense)
    torch.testing.assert_close(use.squared_norms(), dense.flatten(1).square().sum(1))
    torch.testing.assert_close(use.weighted_sum(factors, 1e9), torch.tensordot(factors, dense, 1))
    torch.testing.assert_close(use.transposed().dense(), dense.transpose(2, 3))
    torch.testing.assert_close(use.placed(1, sizes[4] + 2).dense(), Dense(dense).placed(1, sizes[4] + 2).dense())
    torch.testing.assert_close(join([use, use]).squared_norms(), 4 * use.squared_norms())
    torch.testing.assert_close(join([use, Dense(dense)]).squared_norms(), 4 * use.squared_norms())
    units = Units(torch.arange(use.samples) % 2)
    torch.testing.assert_close(use.grouped(units).squared_norms(), Dense(dense).grouped(units).squared_norms())


def test_terms_that_cancel_within_a_sample() -> None:
    a = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1e-3, 1.0]]])
    g = torch.tensor([[[1e4], [-1e4], [1.0]]])
    use = Routed(a, g, torch.zeros(1, 3, dtype=torch.int64), 1)
    torch.testing.assert_close(use.squared_norms(), torch.tensor([1 + 1e-6], dtype=torch.float64), rtol=1e-4, atol=0)
    factors = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(use.weighted_sum(factors, 1.0), torch.tensor([[[1e-3, 1.0]]]), rtol=1e-4, atol=1e-6)


def test_dropped_samples_leave_nothing() -> None:
    use = make(2, 3, 2, 2, 2)
    use.a[0] = float("nan")
    kept = use.without(torch.tensor([True, False]))
    assert torch.isfinite(kept.weighted_sum(torch.ones(2).double(), 1e9)).all()
    assert float(kept.squared_norms()[0]) == 0
