from typing import Any

import pytest
import torch
from torch import Tensor

from tacit.errors import NoRuleError, PrivacyError
from tacit.rules import Contact, Slot
from tacit.rules.broadcast import batch_layout_of, broadcast
from tacit.uses import Layout, Use


class Recorder(Slot):
    def __init__(self) -> None:
        self.uses: list[Use] = []

    def record(self, use: Use) -> None:
        self.uses.append(use)


class Bench(Contact):
    """A contact without an engine: layouts and slots are told to it."""

    def __init__(self, layouts: list[tuple[Tensor, Layout]], parameters: list[Tensor]) -> None:
        self.function = torch.mul
        self.carrier = torch.zeros((), requires_grad=True)
        self.layouts = layouts
        self.slots = [(p, Recorder()) for p in parameters]

    def layout(self, value: object) -> Layout | None:
        return next((layout for x, layout in self.layouts if x is value), None)

    def slot(self, value: object) -> Recorder | None:
        return next((slot for p, slot in self.slots if p is value), None)

    def before_expansion(self, value: Tensor, dim: int) -> Tensor:
        return value

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    def mark(self, value: Tensor, layout: Layout) -> None:
        self.layouts.append((value, layout))

    def where(self) -> str:
        return "the bench"


def owners(layout: Layout) -> Tensor:
    return torch.arange(layout.rows) // layout.inner % layout.samples


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((3, 4, 5), Layout(3, 0)),
        ((4, 4, 4), Layout(4, 0)),
        ((4, 3, 5), Layout(3, 1)),
        ((4, 5, 3), Layout(3, 2)),
        ((12, 5), Layout(3, 0, inner=4)),
        ((12, 5), Layout(3, 0, outer=4)),
        ((2, 12, 5), Layout(3, 1, outer=2, inner=2)),
        ((4, 4), Layout(2, 1, outer=2)),
        ((4, 4), Layout(2, 0, inner=2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_each_sample_gets_the_gradient_of_its_own_rows(shape: tuple[int, ...], layout: Layout, rank: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    sizes = [1 if dim == layout.dim else size for dim, size in enumerate(shape)]
    sizes = [1] * max(rank - len(sizes), 0) + sizes[max(len(sizes) - rank, 0) :] if rank else []
    p = torch.randn(sizes, dtype=torch.float64, requires_grad=True)
    bench = Bench([(x, layout)], [p])
    # One more dimension in front moves the batch.
    y = broadcast(bench, torch.mul, (x, p), {})
    g = torch.randn_like(y)
    y.backward(g)
    torch.testing.assert_close(x.grad, (g * p.detach()).reshape(x.shape))
    assert p.grad is None
    (use,) = bench.slot(p).uses
    dim = layout.dim + y.dim() - x.dim()
    for sample in range(layout.samples):
        mask = torch.zeros(y.shape, dtype=torch.float64)
        mask.movedim(dim, 0)[owners(layout) == sample] = 1
        (expected,) = torch.autograd.grad(x * p, p, g * mask)
        torch.testing.assert_close(use.dense()[sample], expected)


def test_a_parameter_with_a_row_for_each_row_of_the_batch() -> None:
    layout = Layout(2, 1, inner=2)
    x, p = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    bench = Bench([(x, layout)], [p])
    y = broadcast(bench, torch.mul, (x, p), {})
    y.sum().backward()
    (use,) = bench.slot(p).uses
    expected = torch.zeros(2, 3, 4)
    expected[0, :, :2], expected[1, :, 2:] = x.detach()[:, :2], x.detach()[:, 2:]
    torch.testing.assert_close(use.dense(), expected)


def test_operands_that_disagree_are_refused() -> None:
    x = torch.randn(3, 3, requires_grad=True)
    y, p = x.t(), torch.randn(3, requires_grad=True)
    bench = Bench([(x, Layout(3, 0)), (y, Layout(3, 1))], [p])
    with pytest.raises(NoRuleError, match="carry the batch in different ways"):
        broadcast(bench, torch.addcmul, (p, x, y), {})


def test_operands_that_agree_after_alignment() -> None:
    x, y = torch.randn(3, 3), torch.randn(3, 3, 3)
    bench = Bench([(x, Layout(3, 0)), (y, Layout(3, 1))], [])
    assert batch_layout_of(bench, [x, y], 3) == Layout(3, 1)


def test_a_batch_in_a_trailing_dimension_is_refused() -> None:
    x = torch.randn(3, 3)
    with pytest.raises(NoRuleError, match="no operand carries the batch in a broadcast dimension"):
        batch_layout_of(Bench([(x, Layout(3, 0))], []), [x], 2, trailing=2)


def test_a_parameter_that_does_not_broadcast_is_refused() -> None:
    x, p = torch.randn(4, 3), torch.randn(2, 3, requires_grad=True)
    with pytest.raises(NoRuleError, match="does not broadcast against the batch"):
        broadcast(Bench([(x, Layout(4, 0))], [p]), torch.mul, (x, p), {})


def test_second_derivatives_are_refused() -> None:
    x, p = torch.randn(4, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    y = broadcast(Bench([(x, Layout(4, 0))], [p]), torch.mul, (x, p), {})
    with pytest.raises(PrivacyError, match="create_graph"):
        y.sum().backward(create_graph=True)
