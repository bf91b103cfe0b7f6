from typing import Any

import pytest
import torch
from torch import Tensor

from tacit.capture.families import MixedRowsError
from tacit.capture.indexing import follow_index, follow_narrow
from tacit.errors import PrivacyError
from tacit.testing import private_gradients
from tacit.uses import Layout

B = Layout(3, 0)
MIDDLE = Layout(3, 1)
ids = torch.tensor([2, 0, 1])
rows = torch.arange(3)


def followed(layout: Layout, index: Any) -> Layout | None:
    x = torch.zeros(3, 3, 3)
    return follow_index(None, x, layout, (x, index), {}, x[index])


@pytest.mark.parametrize(
    ("layout", "index", "expected"),
    [
        (B, slice(None), B),
        (B, Ellipsis, B),
        (B, None, MIDDLE),
        (B, (slice(None), 0), B),
        (B, (slice(None), -1, None), B),
        (B, (Ellipsis, 0), B),
        (B, (None, Ellipsis, None), MIDDLE),
        (B, (slice(None), ids), B),
        (B, (slice(None), None, ids), B),
        (B, (slice(None), ids, ids), B),
        (B, (slice(None), [2, 0]), B),
        (B, (rows, ids), B),
        (B, (rows, slice(None), ids), B),
        (B, (rows, ids, ids), B),
        (B, ([0, 1, 2], ids), B),
        (B, (rows[:, None], ids), B),
        (B, slice(0, 3), B),
        (MIDDLE, 0, B),
        (MIDDLE, (0, Ellipsis), B),
        (MIDDLE, ids, MIDDLE),
        (MIDDLE, torch.stack([ids, ids]), Layout(3, 2)),
        (MIDDLE, (ids, slice(None), 0), MIDDLE),
        (MIDDLE, (ids, slice(None), ids), MIDDLE),
        (MIDDLE, (slice(None), slice(None), ids), MIDDLE),
        (MIDDLE, (slice(0, 1),), MIDDLE),
    ],
    ids=str,
)
def test_the_batch_is_followed(layout: Layout, index: Any, expected: Layout) -> None:
    assert followed(layout, index) == expected


@pytest.mark.parametrize(
    "index",
    [
        0,
        (0, Ellipsis),
        slice(1, None),
        slice(0, 2),
        slice(None, None, 2),
    ],
    ids=str,
)
def test_a_choice_among_samples_is_lost(index: Any) -> None:
    assert followed(B, index) is None


@pytest.mark.parametrize(
    ("index", "owners"),
    [
        (torch.tensor([True, True, True]), [0, 1, 2]),
        (torch.tensor([2, 0, 1]), [2, 0, 1]),
        (torch.tensor([-1, -2, -3]), [2, 1, 0]),
        (torch.tensor([0, 1, 2, 0, 1, 2]), [0, 1, 2, 0, 1, 2]),
        ([2, 1, 0], [2, 1, 0]),
        (range(3), [0, 1, 2]),
        (torch.tensor([[True, False, True]] * 3), [0, 0, 1, 1, 2, 2]),
    ],
    ids=str,
)
def test_picks_that_treat_samples_alike_keep_them_apart(index: Any, owners: list[int]) -> None:
    layout = followed(B, index)
    assert layout is not None
    assert layout.dim == 0
    assert layout.owners().tolist() == owners


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([False, True, True]),
        torch.tensor([0, 0, 0]),
        [2, 1],
        (torch.tensor([2, 0]), torch.tensor([0, 1])),
        torch.eye(3, dtype=torch.bool),
        torch.ones(3, 3, dtype=torch.bool).tril(),
    ],
    ids=str,
)
def test_picks_that_favour_samples_mix_them(index: Any) -> None:
    with pytest.raises(MixedRowsError):
        followed(B, index)


def test_rows_across_a_broadcast_pair() -> None:
    """x[i[None], j[:, None]]: the samples follow the index in which they are chosen."""
    assert followed(B, (rows[:, None], rows[None])) == B
    found = followed(B, (rows[None], rows[:, None]))
    assert found in (None, MIDDLE)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(0, 6), Layout(3, 0, inner=2)),
        (slice(6, 12), Layout(3, 0, inner=2)),
        (slice(None), Layout(3, 0, outer=2, inner=2)),
        (slice(0, 3), None),
        (slice(1, 7), None),
        (slice(None, None, 2), None),
        (slice(6, 6), None),
    ],
    ids=str,
)
def test_slices_of_several_views(index: slice, expected: Layout | None) -> None:
    layout = Layout(3, 0, outer=2, inner=2)
    x = torch.zeros(12, 2)
    assert follow_index(None, x, layout, (x, index), {}, x[index]) == expected


def narrowed(function: Any, layout: Layout, *args: Any, **kwargs: Any) -> Layout | None:
    x = torch.zeros(6, 3, 2)
    out: Tensor = function(x, *args, **kwargs)
    return follow_narrow(function, x, layout, (x, *args), kwargs, out)


def test_narrow_select_and_index_select() -> None:
    two = Layout(3, 0, outer=2)
    assert narrowed(torch.narrow, two, 0, 3, 3) == B
    assert narrowed(torch.narrow, two, dim=0, start=0, length=3) == B
    assert narrowed(torch.narrow, two, 0, 1, 3) is None
    assert narrowed(torch.narrow, two, 1, 0, 2) == two
    assert narrowed(torch.select, two, 1, 0) == two
    assert narrowed(torch.select, MIDDLE, 0, 0) == B
    assert narrowed(torch.select, MIDDLE, -1, 0) == MIDDLE
    assert narrowed(torch.select, MIDDLE, 1, 0) is None
    assert narrowed(torch.index_select, MIDDLE, 0, torch.tensor([1, 0])) == MIDDLE
    picked = narrowed(torch.index_select, MIDDLE, dim=1, index=torch.tensor([1, 0, 2]))
    assert picked is not None
    assert picked.dim == 1
    assert picked.owners().tolist() == [1, 0, 2]
    with pytest.raises(MixedRowsError):
        narrowed(torch.index_select, MIDDLE, dim=1, index=torch.tensor([1, 0]))


class Picking(torch.nn.Module):
    def __init__(self, pick: Any) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)
        self.pick = pick

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.pick(self.layer(x), x)
        return found


def clipped(pick: Any) -> Any:
    torch.manual_seed(0)
    return private_gradients(
        Picking(pick), lambda m, b: m(b).sum(), torch.randn(5, 3), max_grad_norm=1.0, loss_reduction="sum"
    )


@pytest.mark.parametrize(
    "number",
    [
        lambda h, x: h.sum(0).argmax() % 2,
        lambda h, x: h.detach().sum(0).argmax() % 2,
        lambda h, x: x.long().sum().to(torch.int64).abs() % 2,
        lambda h, x: x.abs().long().sum() % 1,
        lambda h, x: x.abs().long().sum() * 0,
        lambda h, x: (x.mean(0) > 9).long()[0],
        lambda h, x: x.argmax(1) % 2,
        lambda h, x: (slice(None, x.abs().long().max() + 1),),
        lambda h, x: (slice(x.abs().long().max() * 0, None),),
    ],
)
@pytest.mark.parametrize(
    "sums",
    [
        lambda h: h.sum(0),
        lambda h: h.mean(0),
        lambda h: torch.stack([h.sum(), -h.sum()]),
        lambda h: torch.cat([h.sum()[None], h.square().sum()[None]]),
    ],
)
def test_sums_are_not_picked_by_the_batch(sums: Any, number: Any) -> None:
    with pytest.raises(PrivacyError):
        clipped(lambda h, x: sums(h)[number(h, x)].sum())


@pytest.mark.parametrize(
    "bounds",
    [
        lambda x: slice(None, x.abs().long().max() + 1),
        lambda x: slice((x.mean() > 9).long(), None),
        lambda x: slice(None, None, (x.mean() > 9).long() + 1),
    ],
)
@pytest.mark.parametrize("read", [lambda h, s: h[:, s], lambda h, s: h * torch.arange(4.0)[s].sum()])
def test_no_slice_ends_where_the_batch_says(read: Any, bounds: Any) -> None:
    with pytest.raises(PrivacyError):
        clipped(lambda h, x: read(h, bounds(x)))


@pytest.mark.parametrize("index", [0, -1, torch.tensor(1), slice(None, 1), torch.tensor([0, 0])])
def test_sums_may_be_picked_by_constants(index: Any) -> None:
    norms, _ = clipped(lambda h, x: torch.stack([h.sum(), -h.sum()])[index].sum())
    assert bool((norms > 0).all())
