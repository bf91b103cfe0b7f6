"""Parameters that are computed from parameters before they meet the batch."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

X = (4, 4, 4)
DERIVED: dict[str, tuple[Any, dict[str, Any]]] = {
    "slice of positions": (lambda x, p: x + p[:, : x.shape[1]], {"p": (1, 7, 4)}),
    "slice that coincides": (lambda x, p: x + p[: x.shape[1]], {"p": (4, 4)}),
    "one row": (lambda x, p: x + p[2], {"p": (4, 4)}),
    "rows by constant ids": (lambda x, p: x + p[torch.tensor([3, 1, 1, 0])], {"p": (4, 4)}),
    "normalized": (lambda x, w: F.linear(x, w / w.norm()), {"w": (4, 4)}),
    "normalized rows": (lambda x, w: F.linear(x, F.normalize(w, dim=1)), {"w": (4, 4)}),
    "standardized": (lambda x, w: F.linear(x, (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True)), {"w": (4, 4)}),
    "weight norm by hand": (
        lambda x, v, g: F.linear(x, g * v / v.norm(dim=1, keepdim=True)), {"v": (4, 4), "g": (4, 1)},
    ),
    "cast": (lambda x, w: F.linear(x, w.to(torch.float64)), {"w": (4, 4)}),
    "cast of a scale": (lambda x, p: x * p.to(x.dtype).double(), {"p": (4,)}),
    "exp of a scale": (lambda x, p: x * p.exp(), {"p": ()}),
    "exp of a scale, outside": (lambda x, w, p: p.exp() * F.linear(F.normalize(x, dim=-1), w), {"w": (4, 4), "p": ()}),
    "outer product": (lambda x, p, q: x @ torch.outer(p, q), {"p": (4,), "q": (4,)}),
    "outer product, added": (lambda x, p, q: x + p[:, None] * q, {"p": (4,), "q": (4,)}),
    "low rank": (lambda x, p, q: F.linear(x, p @ q), {"p": (4, 2), "q": (2, 4)}),
    "weight plus low rank": (lambda x, w, p, q: F.linear(x, w + 0.5 * p @ q), {"w": (4, 4), "p": (4, 2), "q": (2, 4)}),
    "sum of two tables": (lambda x, p, q: x + (p + q), {"p": (4, 4), "q": (1, 4)}),
    "two weights stacked": (lambda x, p, q: F.linear(x, torch.cat([p, q])), {"p": (2, 4), "q": (3, 4)}),
    "weight and bias from one": (lambda x, w: F.linear(x, w[:, :4], w[:, 4]), {"w": (4, 5)}),
    "scaled weight used directly too": (lambda x, w: F.linear(x, w * 2) + F.linear(x, w), {"w": (4, 4)}),
    "transposed twice": (lambda x, w: x @ w.t().contiguous().t(), {"w": (4, 4)}),
    "permuted kernel": (lambda x, w: F.conv1d(x, w.permute(2, 1, 0)), {"w": (3, 4, 4)}),
    "masked weight": (lambda x, w: F.linear(x, w * torch.ones(4, 4, dtype=w.dtype).tril()), {"w": (4, 4)}),
    "softmax of weights": (lambda x, p: x * p.softmax(0), {"p": (4,)}),
    "softplus": (lambda x, p: x / F.softplus(p), {"p": (4,)}),
    "diagonal": (lambda x, p: x @ torch.diag(p), {"p": (4,)}),
    "orthogonal": (lambda x, w: x @ torch.matrix_exp(w - w.t()), {"w": (4, 4)}),
    "constant ids expanded": (
        lambda x, w: x + F.embedding(torch.arange(x.shape[1]).expand(x.shape[0], -1), w), {"w": (6, 4)},
    ),
    "constant ids repeated": (
        lambda x, w: x + F.embedding(torch.arange(x.shape[1])[None], w), {"w": (6, 4)},
    ),
    "interpolated positions": (
        lambda x, p: x + F.interpolate(p.transpose(1, 2), size=4, mode="linear").transpose(1, 2), {"p": (1, 6, 4)},
    ),
    "in-place on a derived copy": (lambda x, p: x + (p * 1).mul_(2), {"p": (4, 4)}),
    "derived in two steps": (lambda x, p, q: x * (p.exp() + q).tanh() + p.exp(), {"p": (4,), "q": ()}),
}  # fmt: skip


@pytest.mark.parametrize("name", DERIVED)
def test_derived_parameters(exact: Any, name: str) -> None:
    function, shapes = DERIVED[name]
    exact.op(function, torch.randn(X), **shapes)


@pytest.mark.parametrize(
    "name", ["slice of positions", "normalized", "constant ids expanded", "outer product", "exp of a scale"]
)
@pytest.mark.parametrize("B", [1, 3, 7])
def test_derived_parameters_with_other_batches(exact: Any, name: str, B: int) -> None:
    function, shapes = DERIVED[name]
    exact.op(function, torch.randn(B, 4, 4), **shapes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
        lambda: parametrizations.weight_norm(nn.Conv1d(4, 4, 3)),
        lambda: parametrizations.weight_norm(nn.Linear(4, 4, bias=False), dim=None),
        lambda: parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="matrix_exp"),
    ],
    ids=["linear", "conv", "whole", "orthogonal"],
)
def test_parametrizations(exact: Any, make: Any) -> None:
    exact(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), make()), torch.randn(X))


class PositionTable(nn.Module):
    """Positions are a buffer, or made in the forward; the token types are one constant for the whole batch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.tokens, self.positions, self.types = nn.Embedding(6, 4), nn.Embedding(6, 4), nn.Embedding(2, 4)
        self.register_buffer("ids", torch.arange(6)[None])
        self.kind = kind

    def forward(self, ids: Tensor) -> Tensor:
        B, T = ids.shape
        if self.kind == "buffer":
            places = self.ids[:, :T]
        elif self.kind == "expanded":
            places = self.ids[:, :T].expand(B, -1)
        elif self.kind == "repeated":
            places = torch.arange(T).unsqueeze(0).repeat(B, 1)
        else:
            places = torch.cumsum(torch.ones_like(ids), 1) - 1
        kinds = torch.zeros(B, T, dtype=torch.long) if self.kind == "repeated" else torch.zeros_like(ids)
        return self.tokens(ids) + self.positions(places) * self.types(kinds)


@pytest.mark.parametrize("kind", ["buffer", "expanded", "ones_like"])
@pytest.mark.parametrize(("B", "T"), [(3, 5), (4, 4), (1, 4)])
def test_tables_of_constant_ids(exact: Any, kind: str, B: int, T: int) -> None:
    exact(PositionTable(kind), torch.randint(0, 6, (B, T)))


@pytest.mark.parametrize("B", [1, 3, 4])
def test_constant_ids_with_a_row_for_each_sample(exact: Any, B: int) -> None:
    """zeros(B, T) made in the forward: the look-up has one row for each sample."""
    exact(PositionTable("repeated"), torch.randint(0, 6, (B, 4)))
