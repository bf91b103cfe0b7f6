import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tacit.uses import Layout

small = st.integers(1, 3)


def numbered(layout: Layout, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    """A tensor that holds its sample's number at every element."""
    owner = torch.arange(layout.rows) // layout.inner % layout.samples
    return owner.reshape(*[1] * len(before), -1, *[1] * len(after)).expand(*before, layout.rows, *after).clone()


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, Tensor]:
    before, after = tuple(draw(st.lists(small, max_size=2))), tuple(draw(st.lists(small, max_size=2)))
    layout = Layout(draw(small), len(before), draw(small), draw(small))
    return layout, numbered(layout, before, after)


@settings(deadline=None, derandomize=True)
@given(layouts())
def test_split_brings_each_sample_to_its_place(case: tuple[Layout, Tensor]) -> None:
    layout, values = case
    parts = layout.split(values)
    assert parts.shape[0] == layout.samples
    assert parts.numel() == values.numel()
    for sample in range(layout.samples):
        assert (parts[sample] == sample).all()


@settings(deadline=None, derandomize=True)
@given(layouts(), st.integers(0, 2))
def test_rows_of_keeps_features(case: tuple[Layout, Tensor], features: int) -> None:
    layout, values = case
    features = min(features, values.dim() - 1 - layout.dim)
    tail = values.shape[values.dim() - features :]
    rows = layout.rows_of(values, features)
    assert rows.shape == (layout.samples, values.numel() // layout.samples // tail.numel(), *tail)
    for sample in range(layout.samples):
        assert (rows[sample] == sample).all()
    assert torch.equal(layout.totals(values, features), rows.sum(1))


@settings(deadline=None, derandomize=True, max_examples=300)
@given(layouts(), st.data())
def test_reshaped_is_right_or_none(case: tuple[Layout, Tensor], data: st.DataObject) -> None:
    layout, values = case
    left, shape = values.numel(), []
    while data.draw(st.booleans()) and len(shape) < 4:
        shape.append(data.draw(st.sampled_from([k for k in range(1, left + 1) if left % k == 0])))
        left //= shape[-1]
    shape.append(left)
    found = layout.reshaped(values.shape, torch.Size(shape))
    if found is not None:
        assert found.fits(torch.Size(shape))
        parts = found.split(values.reshape(shape))
        for sample in range(layout.samples):
            assert (parts[sample] == sample).all(), (layout, values.shape, shape, found)


@pytest.mark.parametrize(
    ("layout", "before", "after", "expected"),
    [
        (Layout(4, 0), (4, 4, 4), (16, 4), Layout(4, 0, inner=4)),
        (Layout(4, 1), (4, 4, 4), (16, 4), Layout(4, 0, outer=4)),
        (Layout(4, 0, inner=4), (16, 4), (4, 4, 4), Layout(4, 0)),
        (Layout(4, 0, outer=4), (16, 4), (4, 4, 4), Layout(4, 1)),
        (Layout(4, 0), (4, 4), (4, 2, 2), Layout(4, 0)),
        (Layout(4, 0), (4, 4), (1, 4, 4), Layout(4, 1)),
        (Layout(4, 0), (4, 4), (16,), Layout(4, 0, inner=4)),
        (Layout(4, 0), (4, 4), (2, 2, 4), None),
        (Layout(4, 1), (4, 4), (16,), Layout(4, 0, outer=4)),
        (Layout(3, 0), (3, 2), (2, 3), None),
    ],
)  # fmt: skip
def test_reshapes_that_models_use(
    layout: Layout, before: tuple[int, ...], after: tuple[int, ...], expected: Layout | None
) -> None:
    assert layout.reshaped(torch.Size(before), torch.Size(after)) == expected


def test_fits() -> None:
    assert Layout(4, 1, outer=2, inner=3).fits(torch.Size((5, 24)))
    assert not Layout(4, 1).fits(torch.Size((4,)))
    assert not Layout(4, 0).fits(torch.Size((5, 4)))
    assert Layout(4, 1).at(1) == Layout(4, 1)
    assert Layout(4, 1, 2, 3).at(0) == Layout(4, 0, 2, 3)
