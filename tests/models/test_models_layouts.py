"""Where the batch sits: reshapes, flattening and other dimensions, with sizes that coincide."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tacit.errors import FallbackWarning, PrivacyError

SIZES = pytest.mark.parametrize(("B", "T", "d"), [(4, 4, 4), (3, 2, 4), (2, 2, 4), (1, 2, 4)])


def _heads(x: Tensor, h: int) -> Tensor:
    return x.unflatten(-1, (h, -1)).transpose(1, 2)


def _views(x: Tensor, w: Tensor, p: Tensor) -> Tensor:
    both = torch.cat([x, x.tanh()], 0)
    one, two = (F.linear(both, w) * p).chunk(2, 0)
    return one * two


def _views_interleaved(x: Tensor, w: Tensor, p: Tensor) -> Tensor:
    both = torch.stack([x, x.tanh()], 1).flatten(0, 1)
    return (F.linear(both, w) * p).unflatten(0, (-1, 2)).prod(1)


def _folded_heads(x: Tensor, w: Tensor, p: Tensor) -> Tensor:
    B, T, d = x.shape
    q = (_heads(F.linear(x, w), 2)).reshape(B * 2, T, d // 2)
    scores = torch.bmm(q, q.transpose(1, 2)).softmax(-1)
    out = torch.bmm(scores, q) * p[: d // 2]
    return out.view(B, 2, T, d // 2).transpose(1, 2).reshape(B, T, d)


def _as_many_heads(x: Tensor, w: Tensor, p: Tensor) -> Tensor:
    """As many heads as samples, or as features."""
    h = x.shape[-1]
    q = _heads(F.linear(x, w), h)
    return (F.scaled_dot_product_attention(q, q, q) * p[:, None, None]).transpose(1, 2).flatten(2)


INSIDE: dict[str, Any] = {
    "flattened rows": lambda x, w, p: (F.linear(x.reshape(-1, x.shape[-1]), w) * p).view(x.shape),
    "flattened rows, position last": lambda x, w, p: F.linear(x.flatten(0, 1), w).unflatten(0, x.shape[:2]) + p,
    "position first": lambda x, w, p: (F.linear(x.transpose(0, 1), w) + p).transpose(0, 1),
    "position first, a row for each": lambda x, w, p: (
        x.transpose(0, 1) + p[: x.shape[1], None, None] * F.linear(x.transpose(0, 1), w)
    ).transpose(0, 1),
    "position first, flattened": lambda x, w, p: (
        (F.linear(x.transpose(0, 1).reshape(-1, x.shape[-1]), w) * p).view(x.shape[1], -1, x.shape[-1]).transpose(0, 1)
    ),
    "batch last": lambda x, w, p: F.linear((x.permute(1, 2, 0) * p[:, None]).permute(2, 0, 1), w),
    "features first": lambda x, w, p: F.linear((x.permute(2, 1, 0) * p[:, None, None]).permute(2, 1, 0), w),
    "two views": _views,
    "two views interleaved": _views_interleaved,
    "split by sizes": lambda x, w, p: sum(
        F.linear(part, w) * p for part in torch.split(torch.cat([x, x.cos()]), len(x))
    ),
    "sliced halves": lambda x, w, p: (
        (F.linear(torch.cat([x, x.cos()]), w) * p)[: len(x)] - (F.linear(torch.cat([x, x.sin()]), w) * p)[len(x) :]
    ),
    "repeated": lambda x, w, p: (F.linear(x.repeat(3, 1, 1), w) * p).view(3, *x.shape).sum(0),
    "repeated in place": lambda x, w, p: (F.linear(x.repeat_interleave(2, 0), w) * p).view(-1, 2, *x.shape[1:]).sum(1),
    "folded heads": _folded_heads,
    "as many heads as samples": _as_many_heads,
    "last position": lambda x, w, p: F.linear(x[:, -1], w) * p,
    "gathered positions": lambda x, w, p: F.linear(x.gather(1, torch.zeros(len(x), 1, x.shape[2]).long()), w) * p,
    "einsum": lambda x, w, p: torch.einsum("btd,b...d->bt...", x, (F.linear(x, w) * p)),
    "rearranged": lambda x, w, p: (
        F.linear(x.reshape(len(x), -1, 2, x.shape[2] // 2).permute(2, 1, 0, 3).permute(2, 1, 0, 3).reshape(x.shape), w)
        * p
    ),
    "mean over positions": lambda x, w, p: F.linear(x.mean(1), w) * p,
    "maximum over positions": lambda x, w, p: F.linear(x.max(dim=1).values, w) + p,
    "unbound positions": lambda x, w, p: torch.stack([F.linear(row, w) * p for row in x.unbind(1)], 1),
    "unbound after a swap": lambda x, w, p: torch.stack([F.linear(row, w) * p for row in x.transpose(0, 1)]).transpose(
        0, 1
    ),
    "channels by chunks": lambda x, w, p: torch.cat([F.linear(part, w[:2, :2]) * p[:2] for part in x.split(2, -1)], -1),
    "squeezed": lambda x, w, p: (F.linear(x.unsqueeze(1).unsqueeze(-2), w).squeeze(-2) * p).squeeze(1),
    "leading one": lambda x, w, p: (F.linear(x[None], w) * p)[0],
    "index with ellipsis": lambda x, w, p: F.linear(x, w)[..., None] * p + x[..., :1, None],
    "sorted positions": lambda x, w, p: F.linear(x.sort(1).values, w) * p,
    "shifted positions": lambda x, w, p: F.linear(torch.cat([x[:, 1:], x[:, :1]], 1), w) * p,
    "padded positions": lambda x, w, p: F.linear(F.pad(x, (0, 0, 1, 0))[:, :-1], w) * p,
    "written into zeros": lambda x, w, p: F.linear(_written(x), w) * p,
    "detached and cloned": lambda x, w, p: F.linear(x.detach().clone(), w) * p,
}


def _written(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 0] = x[:, -1]
    return y


@SIZES
@pytest.mark.parametrize("name", INSIDE)
def test_layouts_inside_a_forward(exact_auto: Any, name: str, B: int, T: int, d: int) -> None:
    exact_auto.op(INSIDE[name], torch.randn(B, T, d), w=(d, d), p=(d,))


@pytest.mark.parametrize("name", ["two views", "folded heads", "position first, a row for each", "einsum"])
def test_layouts_in_every_mode(exact: Any, name: str) -> None:
    exact.op(INSIDE[name], torch.randn(4, 4, 4), w=(4, 4), p=(4,))


class PositionsFirst(nn.Module):
    """A (T, B, d) model with a parameter for each position."""

    def __init__(self, T: int, d: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(T, 1, d))
        self.linear, self.norm = nn.Linear(d, d), nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.positions)
        scores = torch.bmm(x.transpose(0, 1), x.permute(1, 2, 0)).softmax(-1)
        return self.linear(torch.bmm(scores, x.transpose(0, 1)).transpose(0, 1))


@SIZES
def test_batch_in_dimension_one(exact: Any, B: int, T: int, d: int) -> None:
    exact(PositionsFirst(T, d), torch.randn(T, B, d), batch_first=False)


def test_a_batch_of_mixed_rank(exact: Any) -> None:
    """Ids (B, T), a mask (B, T) and one number for each sample."""
    exact.op(
        lambda i, m, s, w, p: (F.embedding(i, w) * m[..., None]).sum(1) / m.sum(1, keepdim=True) * s[:, None] * p,
        torch.randint(0, 5, (4, 4)), torch.ones(4, 4), torch.rand(4) + 1, w=(5, 4), p=(4,),
    )  # fmt: skip


@pytest.mark.parametrize(("B", "T"), [(4, 4), (3, 2), (2, 3)])
def test_the_last_position_of_each_sample(exact: Any, B: int, T: int) -> None:
    """x[arange(B), lengths], as sequence classifiers pick their last token."""
    lengths = torch.arange(B) % T
    exact.op(
        lambda x, n, w, p: F.linear(x[torch.arange(len(x)), n], w) * p, torch.randn(B, T, 4), lengths, w=(4, 4), p=(4,)
    )
    exact.op(lambda x, n, w: F.linear(x, w)[range(len(x)), n], torch.randn(B, T, 4), lengths, w=(4, 4))


MIXING = {
    "mean over the batch": lambda x, w: F.linear(x - x.mean(0), w),
    "softmax over the batch": lambda x, w: F.linear(x.softmax(0), w),
    "cumsum over the batch": lambda x, w: F.linear(x.cumsum(0), w),
    "flipped batch": lambda x, w: F.linear(x.flip(0), w),
    "rolled batch": lambda x, w: F.linear(x.roll(1, 0), w),
    "sorted batch": lambda x, w: F.linear(x.sort(0).values, w),
    "normalized batch": lambda x, w: F.linear(F.normalize(x, dim=0), w),
    "similarities": lambda x, w: (x @ x.t()) * w[0],
    "distances": lambda x, w: torch.cdist(x, x) * w[0],
    "pairs": lambda x, w: F.linear(x[:, None] + x[None], w),
    "transposed and added": lambda x, w: F.linear(x + x.t(), w),
    "gathered rows": lambda x, w: F.linear(x.gather(0, torch.tensor([[1, 0, 3, 2]]).t().expand(4, 4)), w),
    "attention over the batch": lambda x, w: F.linear(F.scaled_dot_product_attention(x[None], x[None], x[None])[0], w),
    "statistics of the batch": lambda x, w: F.linear((x - x.mean()) / x.std(), w),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixing_before_a_parameter_is_refused(exact_auto: Any, name: str) -> None:
    """Afterwards no sample has a gradient of its own, so that clipping bounds nothing."""
    with pytest.raises(PrivacyError):
        exact_auto.private(MIXING[name], torch.randn(4, 4), w=(4, 4))


@pytest.mark.parametrize("T", [4, 3])
def test_rows_of_a_table_looked_up_one_by_one_are_exact_or_refused(exact_auto: Any, T: int) -> None:
    """Added along time when T = B, each sample would see the rows of the others."""

    def apply(x: torch.Tensor, ids: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        picked = torch.stack([w[ids[b]] for b in range(len(x))])
        return x + (picked if T == 4 else picked[:, None])

    ids = torch.tensor([0, 2, 1, 2])
    if T == 4:
        with pytest.raises(PrivacyError):
            exact_auto.private(apply, torch.randn(4, T, 4), ids, w=(3, 4))
    else:
        with pytest.warns(FallbackWarning):
            exact_auto.op(apply, torch.randn(4, T, 4), ids, w=(3, 4))
