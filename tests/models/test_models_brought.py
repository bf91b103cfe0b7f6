"""Models that people bring, unmodified."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tacit.errors import NoRuleError
from tacit.testing import private_gradients

BATCHES = pytest.mark.parametrize("B", [1, 3, 4])


class BasicBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one, self.norm_one = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.GroupNorm(2, after)
        self.two, self.norm_two = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.GroupNorm(2, after)
        self.down = None
        if stride != 1 or before != after:
            self.down = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(2, after))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm_one(self.one(x)))
        out = self.norm_two(self.two(out))
        out += x if self.down is None else self.down(x)
        return self.relu(out)


@BATCHES
def test_resnet_18_with_group_norm(exact: Any, B: int) -> None:
    widths, stages = (2, 2, 4, 4, 6), []
    for before, after, stride in zip(widths, widths[1:], (1, 2, 1, 2), strict=False):
        stages += [BasicBlock(before, after, stride), BasicBlock(after, after, 1)]
    stem = [nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.GroupNorm(2, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    exact(
        nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)), torch.randn(B, 3, 8, 8)
    )


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.inward(x))
        deep = F.relu(self.deep(F.max_pool2d(skip, 2)))
        return self.out(torch.cat([skip, self.up(deep)], 1))


@BATCHES
def test_u_net(exact: Any, B: int) -> None:
    exact(UNet(), torch.randn(B, 3, 4, 4))


class Byol(nn.Module):
    """The target is a momentum copy, which is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
        self.predictor = nn.Linear(4, 4)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            goal = self.target(y)
        return 2 - 2 * F.cosine_similarity(self.predictor(self.online(x)), goal, dim=-1)


@BATCHES
def test_byol(exact: Any, B: int) -> None:
    exact.loss(Byol().to(exact.dtype), lambda m, b: m(*b).mean(), tuple(torch.randn(2, B, 4, dtype=exact.dtype)))


@BATCHES
def test_a_siamese_triplet(exact: Any, B: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).to(exact.dtype)
    batch = tuple(torch.randn(3, B, 4, dtype=exact.dtype))
    exact.loss(model, lambda m, b: F.triplet_margin_loss(*(m(x) for x in b), margin=5.0), batch)


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 6), nn.Linear(3, 4)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, spread = self.encoder(x).chunk(2, -1)
        noise = torch.randn_like(mean) if noise is None else noise
        divergence = 0.5 * (mean.square() + spread.exp() - spread - 1).sum(-1)
        return self.decoder(mean + noise * (0.5 * spread).exp()), divergence


def bound(model: nn.Module, batch: Any) -> Tensor:
    out, divergence = model(*batch)
    return ((out - batch[0]).square().sum(-1) + divergence).mean()


@BATCHES
def test_variational_autoencoder(exact: Any, B: int) -> None:
    x, noise = torch.randn(B, 4, dtype=exact.dtype), torch.randn(B, 3, dtype=exact.dtype)
    exact.loss(Vae().to(exact.dtype), bound, (x, noise))
    norms, _ = private_gradients(Vae().to(exact.dtype), bound, (x,), max_grad_norm=1.0, grad_sample_mode=exact.mode)
    assert torch.isfinite(norms).all()


class Graph(nn.Module):
    """Messages over a dense adjacency (B, N, N), a different graph for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.own, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        for _ in range(2):
            degree = adjacency.sum(-1, keepdim=True).clamp(min=1)
            x = F.relu(self.own(x) + adjacency @ self.message(x) / degree)
        return self.head(x.mean(1))


@BATCHES
def test_graph_network(exact: Any, B: int) -> None:
    exact(Graph(), torch.randn(B, 4, 4), (torch.rand(B, 4, 4) > 0.5).double())


class Dlrm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.EmbeddingBag(n, 4, mode="sum") for n in (5, 7, 3)])
        self.bottom, self.top = nn.Linear(4, 4), nn.Linear(10, 1)

    def forward(self, dense: Tensor, *sparse: Tensor) -> Tensor:
        parts = [F.relu(self.bottom(dense)), *(table(ids) for table, ids in zip(self.tables, sparse, strict=True))]
        stacked = torch.stack(parts, 1)
        pairs = stacked @ stacked.mT
        rows, columns = torch.tril_indices(4, 4, -1)
        return self.top(torch.cat([parts[0], pairs[:, rows, columns]], 1)).squeeze(1)


@BATCHES
def test_tables_of_a_recommender(exact: Any, B: int) -> None:
    ids = [torch.randint(0, n, (B, 2)) for n in (5, 7, 3)]
    exact(Dlrm(), torch.randn(B, 4), *ids)


class Halting(nn.Module):
    """Calls its cell until every sample is done; a sample that is done changes no more."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        left = (x.detach()[:, :1].abs() * 3).ceil()
        while bool((left > 0).any()):
            x = torch.where(left > 0, torch.tanh(self.cell(x)), x)
            left = left - 1
        return self.head(x)


@BATCHES
def test_a_number_of_calls_that_depends_on_the_data(exact: Any, B: int) -> None:
    exact(Halting(), torch.randn(B, 4), scaled=False)


@dataclass
class Out:
    first: Tensor
    rest: dict[str, Tensor]


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, *, left: Tensor, right: Tensor, scale: float) -> Out:
        return Out(self.left(left) * scale, {"right": self.right(right)})


@BATCHES
def test_keywords_in_and_a_dataclass_out(exact: Any, B: int) -> None:
    def loss(m: nn.Module, b: Any) -> Tensor:
        out = m(left=b[0], right=b[1], scale=0.5)
        return (out.first * out.rest["right"]).square().sum(1).mean()

    exact.loss(
        Keywords().to(exact.dtype), loss, (torch.randn(B, 4, dtype=exact.dtype), torch.randn(B, 2, dtype=exact.dtype))
    )


def test_a_gradient_penalty_through_the_private_critic_is_refused() -> None:
    def loss(m: nn.Module, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean()

    with pytest.raises(NoRuleError, match="create_graph=True.*gradient penalties"):
        private_gradients(
            nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), loss, torch.randn(3, 4), max_grad_norm=1.0
        )
