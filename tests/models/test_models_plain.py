"""Whole models in plain PyTorch."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarks.zoo.networks import SimSiam
from torch import Tensor, nn

from tacit.errors import FallbackWarning, SecondBackwardError

CLASSES = 4


def classify(m: nn.Module, b: Any, c: Any) -> Tensor:
    return c(m(b[0]), b[1])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.LayerNorm(6), nn.Linear(6, CLASSES))


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 3, padding="same", groups=2, bias=False),
        nn.InstanceNorm2d(4, affine=True),
        nn.SiLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 4, 1)
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        x = x + self.gain * self.two(F.relu(self.norm(self.one(x)), inplace=True))
        x += self.two(x.tanh())
        return self.head(x.mean((2, 3)))


class Encoder(nn.Module):
    """A transformer encoder with class token, positions, attention by hand or fused, and a relative bias."""

    def __init__(self, d: int = 4, heads: int = 2, length: int = 8, *, fused: bool, fold: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, d)
        self.cls = nn.Parameter(torch.randn(1, 1, d))
        self.positions = nn.Parameter(torch.randn(1, length, d))
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.norms = nn.ModuleList([nn.LayerNorm(d), nn.LayerNorm(d), nn.RMSNorm(d)])
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.bias = nn.Parameter(torch.randn(heads, length, length))
        self.head = nn.Linear(d, CLASSES)
        self.heads, self.fused, self.fold = heads, fused, fold

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, H, T, d = q.shape
        bias = self.bias[:, :T, :T]
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if self.fold:
            q, k, v = (x.reshape(B * H, T, d) for x in (q, k, v))
            scores = torch.bmm(q, k.transpose(1, 2)).view(B, H, T, T) / d**0.5 + bias
            return torch.bmm(scores.softmax(-1).view(B * H, T, T), v).view(B, H, T, d)
        return (q @ k.transpose(-2, -1) / d**0.5 + bias).softmax(-1) @ v

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(ids.shape[0], -1, -1), self.tokens(ids)], 1)
        x = x + self.positions[:, : x.shape[1]]
        q, k, v = (
            part.view(*part.shape[:2], self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).reshape(x.shape))
        x = x + self.mlp(self.norms[1](x))
        return self.head(self.norms[2](x)[:, 0])


@pytest.mark.parametrize("B", [1, 3, 4])
def test_mlp(exact_any: Any, B: int) -> None:
    torch.manual_seed(0)
    exact_any.loss(
        mlp().to(exact_any.dtype),
        classify,
        (exact_any.cast(torch.randn(B, 4)), torch.arange(B) % CLASSES),
        nn.CrossEntropyLoss(),
    )


@pytest.mark.parametrize("make", [convnet, Residual])
@pytest.mark.parametrize(("B", "size"), [(3, 6), (4, 4)])
def test_convolutional_networks(exact: Any, make: Any, B: int, size: int) -> None:
    batch = (torch.randn(B, 4, size, size).double(), torch.arange(B) % CLASSES)
    exact.loss(make().double(), classify, batch, nn.CrossEntropyLoss())


@pytest.mark.parametrize(
    ("fused", "fold"), [(True, False), (False, False), (False, True)], ids=["fused", "by hand", "folded"]
)
@pytest.mark.parametrize(("B", "T", "d", "heads"), [(3, 5, 4, 2), (4, 4, 4, 4), (2, 4, 4, 2), (4, 3, 4, 1)])
def test_transformer_encoder(exact: Any, B: int, T: int, d: int, heads: int, fused: bool, fold: bool) -> None:
    model = Encoder(d, heads, fused=fused, fold=fold).double()
    exact.loss(model, classify, (torch.randint(0, 11, (B, T)), torch.arange(B) % CLASSES), nn.CrossEntropyLoss())


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    return -F.cosine_similarity(p, z, dim=-1).mean()


@pytest.mark.parametrize("B", [3, 4])
def test_simsiam_in_one_forward(exact: Any, B: int) -> None:
    def loss(m: nn.Module, b: Any) -> Tensor:
        p1, p2, z1, z2 = m(*b)
        return (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2

    exact.loss(SimSiam().double(), loss, (torch.randn(B, 4).double(), torch.randn(B, 4).double()))


def test_simsiam_in_two_forwards_of_its_parts(exact: Any) -> None:
    def loss(m: Any, b: Any, c: Any) -> Tensor:
        z1, z2 = m.encoder(b[0]), m.encoder(b[1])
        return c(m.predictor(z1), z2.detach()) + c(m.predictor(z2), z1.detach())

    exact.loss(SimSiam().double(), loss, (torch.randn(4, 4).double(), torch.randn(4, 4).double()), nn.MSELoss())


def test_a_target_without_gradient(exact: Any) -> None:
    def loss(m: Any, b: Any, c: Any) -> Tensor:
        with torch.no_grad():
            target = m.encoder(b[1])
        return c(m.predictor(m.encoder(b[0])), target)

    exact.loss(SimSiam().double(), loss, (torch.randn(4, 4).double(), torch.randn(4, 4).double()), nn.MSELoss())


def test_two_forwards_and_one_backward(exact: Any) -> None:
    def loss(m: nn.Module, b: Any, c: Any) -> Tensor:
        return c(m(b[0]), b[2]) + 0.5 * c(m(b[1]), b[2])

    batch = (torch.randn(4, 4).double(), torch.randn(4, 4).double(), torch.arange(4))
    exact.loss(mlp().double(), loss, batch, nn.CrossEntropyLoss())


def test_several_losses_summed(exact: Any) -> None:
    def loss(m: nn.Module, b: Any, c: Any) -> Tensor:
        y = m(b[0])
        return c(y, b[1]) + 2 * c(y * 0.3, b[2])

    batch = (torch.randn(4, 4).double(), torch.arange(4), torch.arange(4).flip(0))
    exact.loss(mlp().double(), loss, batch, nn.CrossEntropyLoss())


def test_a_loss_beside_the_criterion_is_exact_or_refused(exact: Any) -> None:
    def loss(m: nn.Module, b: Any, c: Any) -> Tensor:
        y = m(b[0])
        return c(y, b[1]) + y.square().mean()

    batch = (torch.randn(4, 4).double(), torch.arange(4))
    try:
        report = exact.loss(mlp().double(), loss, batch, nn.CrossEntropyLoss())
    except SecondBackwardError:
        assert exact.mode == "ghost"
    else:
        assert report.sum_error < 1e-9


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.bias = nn.Parameter(torch.zeros(7))

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.body(self.embed(ids)).tanh(), self.embed.weight, self.bias)


@pytest.mark.parametrize(("B", "T"), [(3, 5), (4, 4), (7, 7), (3, 1)])
def test_tied_embedding_and_head(exact_any: Any, B: int, T: int) -> None:
    ids = torch.randint(0, 7, (B, T + 1))
    exact_any.loss(
        TiedLanguageModel().to(exact_any.dtype),
        lambda m, b, c: c(m(b[:, :-1]).transpose(1, 2), b[:, 1:]),
        ids,
        nn.CrossEntropyLoss(),
    )


def test_the_sum_over_the_batch(exact_auto: Any) -> None:
    from tacit.testing import check_exactness

    for mode in ("auto", "hooks", "ghost"):
        report = check_exactness(
            mlp().double(),
            classify,
            (torch.randn(4, 4).double(), torch.arange(4)),
            grad_sample_mode=mode,
            loss_reduction="sum",
            criterion=nn.CrossEntropyLoss(reduction="sum"),
        )
        assert report.norm_error < 1e-9


@pytest.mark.parametrize("bound", [1e-3, 0.5, 1e3])
def test_other_clipping_bounds(exact_auto: Any, bound: float) -> None:
    from tacit.testing import check_exactness

    report = check_exactness(
        mlp().double(),
        classify,
        (torch.randn(4, 4).double(), torch.arange(4)),
        max_grad_norm=bound,
        criterion=nn.CrossEntropyLoss(),
    )
    total = torch.stack([g.norm() for g in report.reference.sums.values()]).norm()
    assert total <= 4 * bound * (1 + 1e-9)


class Unseen(nn.Module):
    """torch.vmap hides from the engine that its output depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.vmap(torch.tanh)(self.one(x)))


def test_a_parameter_behind_an_unseen_call_runs_apart(exact: Any) -> None:
    with pytest.warns(FallbackWarning, match="could not be seen"):
        exact(Unseen(), torch.randn(4, 4))
