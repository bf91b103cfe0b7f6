"""Attacks: samples that decide which rows of *others* count.

Every row is known by its sample, so each contribution is clipped; and yet, when one record goes, others come in or drop
out, and the sum moves by more than one sample's bound.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from tacit.errors import PrivacyError
from tacit.testing import private_gradients

B, T, D = 8, 4, 5
pytestmark = pytest.mark.filterwarnings("ignore::tacit.errors.FallbackWarning")


class Routed(nn.Module):
    """Two experts, each of which sees the rows that ``choose(scores, expert, chosen)`` names, by number or mask."""

    def __init__(self, choose: Callable[[Tensor, int, Tensor], Tensor]) -> None:
        super().__init__()
        self.router, self.choose = nn.Linear(D, 2), choose
        self.experts = nn.ModuleList([nn.Linear(D, D) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, D)
        scores = self.router(rows).softmax(-1)
        out = torch.zeros_like(rows)
        for e, expert in enumerate(self.experts):
            picked = self.choose(scores, e, scores.argmax(-1))
            if picked.dtype == torch.bool:
                out[picked] = out[picked] + expert(rows[picked]) * scores[picked, e, None]
            else:
                out.index_add_(0, picked, expert(rows[picked]) * scores[picked, e, None])
        return (rows + out).reshape(x.shape).mean(1)


class Masked(nn.Module):
    """One layer; what becomes of its output is up to ``change(h, scores)``: behind the last parameter."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(D, D), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.layer(x), x.sum(-1))


def zeroed(h: Tensor, s: Tensor) -> Tensor:
    rows = h.reshape(-1, D).clone()
    rows[s.flatten().topk(8).indices] = 0
    return rows.view_as(h)


FAIR = {
    "routing by number": Routed(lambda p, e, c: (c == e).nonzero().flatten()),
    "routing by where": Routed(lambda p, e, c: torch.where(c == e)[0]),
    "routing by mask": Routed(lambda p, e, c: c == e),
    "threshold of one's own": Routed(lambda p, e, c: p[:, e] > 0.5),
    "everybody": Routed(lambda p, e, c: p[:, e].argsort()),
    "own mask": Masked(lambda h, s: h * (s > 0)[..., None]),
    "own best": Masked(lambda h, s: h.gather(1, s.topk(2, 1).indices[..., None].expand(-1, -1, D))),
    "own place": Masked(lambda h, s: h[torch.arange(len(h)), s.argmax(1)]),
    "every second position": Masked(lambda h, s: h[:, torch.tensor([0, 2])]),
    "sorted and back": Masked(lambda h, s: _sorted_and_back(h, s)),
}
UNFAIR = {
    "expert choice": Routed(lambda p, e, c: p[:, e].topk(8).indices),
    "the first of a sort": Routed(lambda p, e, c: p[:, e].argsort(descending=True)[:8]),
    "capacity by nonzero": Routed(lambda p, e, c: (c == e).nonzero().flatten()[:5]),
    "capacity by where": Routed(lambda p, e, c: torch.where(c == e)[0][:5]),
    "capacity by count": Routed(lambda p, e, c: ((c == e) & ((c == e).long().cumsum(0) <= 5)).nonzero().flatten()),
    "capacity by mask": Routed(lambda p, e, c: (c == e) & ((c == e).long().cumsum(0) <= 5)),
    "above the mean": Routed(lambda p, e, c: (p[:, e] > p[:, e].mean()).nonzero().flatten()),
    "above the mean, by mask": Routed(lambda p, e, c: p[:, e] > p[:, e].mean()),
    "first half": Routed(lambda p, e, c: torch.arange(len(c) // 2)),
    "last rows": Routed(lambda p, e, c: torch.arange(len(c) - 4, len(c))),
    "scaled by the mean": Masked(lambda h, s: h * (s > s.mean())[..., None]),
    "ranks": Masked(lambda h, s: h * (s.flatten().argsort().argsort().view_as(s) < B * T // 2)[..., None]),
    "places": Masked(lambda h, s: h * ((s < 99).nonzero()[:, 0].view_as(s) < 3)[..., None]),
    "counted": Masked(lambda h, s: h * ((s > 0).long().flatten().cumsum(0).view_as(s) <= 4)[..., None]),
    "filled": Masked(lambda h, s: h.reshape(-1, D).index_fill(0, s.flatten().topk(8).indices, 0.0).view_as(h)),
    "written over": Masked(zeroed),
    "masked by the largest": Masked(lambda h, s: h.masked_fill((s > s.max() / 2)[..., None], 0)),
    "where": Masked(lambda h, s: torch.where((s > s.mean())[..., None], h, torch.zeros_like(h))),
    "features of the batch": Masked(lambda h, s: h[..., h.sum((0, 1)).argsort()[:2]]),
    "one feature of the batch": Masked(lambda h, s: h[..., h.sum((0, 1)).argmax()]),
    "features of others": Masked(lambda h, s: h[:, 0][:, (s[:, 0] > 0).long()]),
    "selected features": Masked(lambda h, s: h.index_select(-1, h.sum((0, 1)).argsort()[:2])),
    "softmax over samples": Masked(lambda h, s: h * s.softmax(0)[..., None]),
    "half of the batch": Masked(lambda h, s: h[: len(h) // 2]),
}


def _sorted_and_back(h: Tensor, s: Tensor) -> Tensor:
    order = s.flatten().argsort()
    rows = h.reshape(-1, D)[order].tanh()
    return rows[order.argsort()].view_as(h)


def clipped_sum(model: nn.Module, x: Tensor) -> Tensor:
    _, sums = private_gradients(model, lambda m, x: 3 * m(x).square().sum(), x, max_grad_norm=1.0, loss_reduction="sum")
    return torch.cat([value.flatten() for value in sums.values()])


def moves(model: nn.Module) -> Iterator[float]:
    """How far the clipped sum moves when each record is taken out in turn."""
    for seed in range(3):
        torch.manual_seed(seed)
        for parameter in model.double().parameters():
            nn.init.normal_(parameter)
        x = torch.randn(B, T, D).double()
        x[0] *= 8
        whole = clipped_sum(model, x)
        for j in range(B):
            yield float((whole - clipped_sum(model, torch.cat([x[:j], x[j + 1 :]]))).norm())


@pytest.mark.parametrize("name", FAIR)
def test_choices_of_ones_own_are_kept_within_the_bound(name: str) -> None:
    assert max(moves(FAIR[name])) <= 1 + 1e-9


@pytest.mark.parametrize("name", UNFAIR)
def test_choices_of_others_are_refused(name: str) -> None:
    with pytest.raises(PrivacyError):
        max(moves(UNFAIR[name]))


def test_offsets_that_cut_experts_off_are_refused() -> None:
    """A grouped product whose offsets hold a capacity: which expert a row meets depends on the others."""
    if not torch.cuda.is_available() and not callable(getattr(torch.nn.functional, "grouped_mm", None)):
        pytest.skip("torch has no grouped_mm")

    class Net(nn.Module):
        def __init__(self, limit: int | None) -> None:
            super().__init__()
            self.weight, self.limit = nn.Parameter(torch.randn(2, 8, 8)), limit

        def forward(self, x: Tensor) -> Tensor:
            rows = x.reshape(-1, 8)
            chosen = (rows[:, 0] > 0).long()
            order = chosen.argsort()
            counts = torch.bincount(chosen, minlength=2)
            counts = counts if self.limit is None else counts.clamp(max=self.limit)
            out = torch.nn.functional.grouped_mm(rows[order], self.weight, offs=counts.cumsum(0).int())
            return out[order.argsort()].view_as(x)

    x = torch.randn(4, 3, 8)
    _, sums = private_gradients(Net(None), lambda m, x: m(x).square().mean(), x, max_grad_norm=1.0)
    assert sums["weight"].any()
    with pytest.raises(PrivacyError):
        private_gradients(Net(2), lambda m, x: m(x).square().mean(), x, max_grad_norm=1.0)
