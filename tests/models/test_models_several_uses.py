"""One parameter in several calls: a sample's gradient is the sum over them, and its norm is of the sum."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarks.zoo.networks import Recursive
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

USES: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear twice": (lambda x, w, b: F.linear(F.linear(x, w, b).tanh(), w, b), {"w": (4, 4), "b": (4,)}),
    "linear three times": (lambda x, w: F.linear(F.linear(F.linear(x, w).tanh(), w).tanh(), w), {"w": (4, 4)}),
    "weight and its transpose": (lambda x, w: F.linear(F.linear(x, w).tanh(), w.t()), {"w": (4, 4)}),
    "autoencoder": (lambda x, w: F.linear(x, w).tanh() @ w, {"w": (3, 4)}),
    "weight as a position table": (lambda x, w: F.linear(x, w) + w, {"w": (4, 4)}),
    "weight as a scale": (lambda x, w: F.linear(x, w) * w[0], {"w": (4, 4)}),
    "bias shared": (lambda x, w, b: F.linear(x, w, b) * b, {"w": (4, 4), "b": (4,)}),
    "weight and derived weight": (lambda x, w: F.linear(x, w) + F.linear(x.tanh(), w / w.norm()), {"w": (4, 4)}),
    "norm shared": (
        lambda x, w, b: F.layer_norm(F.layer_norm(x, (4,), w, b).tanh(), (4,), w, b), {"w": (4,), "b": (4,)},
    ),
    "scale in both branches": (lambda x, p: x.tanh() * p + x * p.exp(), {"p": (4,)}),
    "once over positions, once over the mean": (
        lambda x, w: F.linear(x, w) + F.linear(x.mean(1), w).unsqueeze(1), {"w": (4, 4)},
    ),
    "conv and linear": (lambda x, w: F.conv1d(x.transpose(1, 2), w.unsqueeze(-1)) + F.linear(x, w).mT, {"w": (4, 4)}),
    "detached branch": (lambda x, w: F.linear(x, w) * F.linear(x, w).detach(), {"w": (4, 4)}),
    "detached weight": (lambda x, w: F.linear(F.linear(x, w).tanh(), w.detach()), {"w": (4, 4)}),
    "branch without gradient": (lambda x, w: F.linear(x, w) + _frozen(x, w), {"w": (4, 4)}),
    "uses that cancel in part": (lambda x, w: F.linear(x, w) - 0.9 * F.linear(x, w) + x, {"w": (4, 4)}),
    "query is key": (lambda x, w: (x @ w) @ (x @ w).transpose(1, 2), {"w": (4, 4)}),
}  # fmt: skip


def _frozen(x: Tensor, w: Tensor) -> Tensor:
    with torch.no_grad():
        return F.linear(x, w)


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("B", [4, 3])
def test_several_uses(exact: Any, name: str, B: int) -> None:
    function, shapes = USES[name]
    exact.op(function, torch.randn(B, 4, 4), **shapes)


class Shared(nn.Module):
    """Two modules hold one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.embed(ids)).tanh()).tanh())


@pytest.mark.parametrize(("B", "T"), [(3, 5), (4, 4), (6, 6)])
def test_two_modules_with_one_weight(exact: Any, B: int, T: int) -> None:
    exact(Shared(), torch.randint(0, 6, (B, T)))


class Recomputed(Recursive):
    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return checkpoint(super().step, x, h, use_reentrant=False)


@pytest.mark.parametrize("network", [Recursive, Recomputed])
@pytest.mark.parametrize(("B", "T"), [(3, 5), (4, 4), (1, 3)])
def test_recursion(exact: Any, B: int, T: int, network: type[Recursive]) -> None:
    exact(network(), torch.randn(B, T, 4))


def test_recursion_over_unbound_positions(exact: Any) -> None:
    def run(x: Tensor, w: Tensor, u: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for row in x.transpose(0, 1).unbind(0):
            h = torch.tanh(row @ w + h @ u)
        return h

    exact.op(run, torch.randn(4, 4, 4), w=(4, 4), u=(4, 4))


class Sometimes(nn.Module):
    """Uses one of two branches, chosen by the first element of a buffer; a third is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.pick = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if self.pick == 0 else self.two(self.one(x))


@pytest.mark.parametrize("pick", [0, 1])
def test_parameters_without_a_use_get_zero(exact: Any, pick: int) -> None:
    model = Sometimes()
    model.pick = pick
    report = exact(model, torch.randn(4, 4))
    assert report.reference.sums["inner.never.weight"].abs().sum() == 0
    found = exact.private(model, torch.randn(4, 4))
    assert found["never.weight"].abs().sum() == 0
    assert found["two.weight"].any() == bool(pick)


def test_a_parameter_used_for_some_samples_only(exact: Any) -> None:
    exact.op(lambda x, w: torch.where(x.sum(-1, keepdim=True) > 0, F.linear(x, w), x), torch.randn(4, 4), w=(4, 4))
