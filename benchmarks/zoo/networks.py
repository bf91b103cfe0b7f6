"""Networks that people bring: nothing in them knows of privacy."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class BasicBlock(nn.Module):
    """Two convolutions and a way around them."""

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
        activated: Tensor = self.relu(out)
        return activated


def resnet_18() -> nn.Module:
    """The shape of ResNet-18, with GroupNorm and very few channels: (B, 3, 32, 32) → (B, 3)."""
    widths = (4, 4, 6, 8, 8)
    stages: list[nn.Module] = []
    for before, after, stride in zip(widths, widths[1:], (1, 2, 1, 2), strict=False):
        stages += [BasicBlock(before, after, stride), BasicBlock(after, after, 1)]
    stem = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


class UNet(nn.Module):
    """(B, 3, 4, 4) → (B, 3, 4, 4), with a skip connection and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.inward(x))
        deep = F.relu(self.deep(F.max_pool2d(skip, 2)))
        out: Tensor = self.out(torch.cat([skip, self.up(deep)], 1))
        return out


class SimSiam(nn.Module):
    """Two views through one encoder; the targets are detached."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 4))
        self.predictor = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, one: Tensor, two: Tensor) -> tuple[Tensor, ...]:
        z1, z2 = self.encoder(one), self.encoder(two)
        return self.predictor(z1), self.predictor(z2), z1.detach(), z2.detach()


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


class Vae(nn.Module):
    """Returns the reconstruction and the divergence of each sample, (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 6), nn.Linear(3, 4)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, spread = self.encoder(x).chunk(2, -1)
        noise = torch.randn_like(mean) if noise is None else noise
        divergence = 0.5 * (mean.square() + spread.exp() - spread - 1).sum(-1)
        return self.decoder(mean + noise * (0.5 * spread).exp()), divergence


class Graph(nn.Module):
    """Messages over a dense adjacency (B, N, N), a different graph for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.own, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        for _ in range(2):
            degree = adjacency.sum(-1, keepdim=True).clamp(min=1)
            x = F.relu(self.own(x) + adjacency @ self.message(x) / degree)
        out: Tensor = self.head(x.mean(1))
        return out


class Dlrm(nn.Module):
    """Tables of embeddings, and products of all pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.EmbeddingBag(n, 4, mode="sum") for n in (5, 7, 3)])
        self.bottom, self.top = nn.Linear(4, 4), nn.Linear(10, 1)

    def forward(self, dense: Tensor, *sparse: Tensor) -> Tensor:
        parts = [F.relu(self.bottom(dense)), *(table(ids) for table, ids in zip(self.tables, sparse, strict=True))]
        stacked = torch.stack(parts, 1)
        pairs = stacked @ stacked.mT
        rows, columns = torch.tril_indices(4, 4, -1)
        out: Tensor = self.top(torch.cat([parts[0], pairs[:, rows, columns]], 1)).squeeze(1)
        return out


class Packed(nn.Module):
    """A classifier over sequences of different lengths: ids (B, T), lengths (B,) → (B, 3)."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(8, 3)
        self.rnn = layer(4, 4, batch_first=True, bidirectional=True)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        out: Tensor = self.head(states.sum(1) / lengths[:, None])
        return out


class Experts(nn.Module):
    """Top-1 routing in one of three styles: (B, T, d) → (B, T, d)."""

    def __init__(self, style: str, d: int = 4, count: int = 4) -> None:
        super().__init__()
        self.style = style
        self.router = nn.Linear(d, count)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, d)) for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen = self.router(rows).softmax(-1).max(-1)
        if self.style == "masks":
            out = torch.zeros_like(rows)
            for e, expert in enumerate(self.experts):
                mask = chosen == e
                if mask.any():
                    out[mask] = expert(rows[mask]) * weights[mask][:, None]
        elif self.style == "index_add":
            out = torch.zeros_like(rows)
            for e, expert in enumerate(self.experts):
                (places,) = torch.where(chosen == e)
                if len(places):
                    out = out.index_add(0, places, expert(rows[places]) * weights[places, None])
        else:
            out = torch.stack([expert(rows) for expert in self.experts], 1)
            out = (out * F.one_hot(chosen, len(self.experts))[..., None]).sum(1) * weights[:, None]
        return out.view(x.shape)


class Routed(nn.Module):
    """A layer of experts between two linear layers: (B, T, 4) → (B, T, 3)."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.first, self.experts, self.head = nn.Linear(4, 4), Experts(style), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = self.head(x + self.experts(x))
        return out


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
        out: Tensor = self.head(x)
        return out


class Recursive(nn.Module):
    """One cell over all positions: (B, T, 4) → (B, T, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(8, 4)
        self.start = nn.Parameter(torch.randn(4))

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.cell(torch.cat([x, h], -1)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.start.expand(x.shape[0], -1)
        out = []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            out.append(h)
        return torch.stack(out, 1)


@dataclass
class Out:
    first: Tensor
    rest: dict[str, Tensor]


class Keywords(nn.Module):
    """Takes keywords only; returns a dataclass with a dictionary in it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, *, left: Tensor, right: Tensor, scale: float) -> Out:
        return Out(self.left(left) * scale, {"right": self.right(right)})


def critic() -> nn.Module:
    """Scores samples (B, 4) → (B, 1)."""
    return nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.2, inplace=True), nn.Linear(6, 1))
