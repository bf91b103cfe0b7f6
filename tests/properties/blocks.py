"""Blocks of random models. Each maps (B, T, d) to (B, T, d); *pointwise* ones map (..., d) to (..., d).

``LATER`` holds blocks for layers that are not supported yet: move an entry to ``BLOCKS`` (or ``POINTWISE``) when it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 0.1
"""Of normalization: over two features a small one makes gradients that are all rounding error."""


class Named(nn.Module):
    """``function(self, x)`` with parts (modules, parameters and buffers) of its own."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Parameter | nn.Module):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


Maker = Callable[[int, int, int], nn.Module]
"""``(B, T, d) -> module``. B is for layers that must not be confused by it."""


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / 2 + 0.5)


def _in_place(m: nn.Module, x: Tensor) -> Tensor:
    y = m.inner(x)
    return y.mul_(0.5).add_(x).relu_()


def _scaled_in_place(m: nn.Module, x: Tensor) -> Tensor:
    y = x * 1.0
    y *= m.scale
    y += m.shift
    return y


def _lora(m: nn.Module, x: Tensor) -> Tensor:
    return m.base(x) + m.up(m.down(x))


def _attention(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).unflatten(-1, (3, m.heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * 0.7 + m.bias[:, : x.shape[1], : x.shape[1]]).softmax(-1)
    return m.out((weights @ v).transpose(1, 2).flatten(2))


def _fused_attention(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (part.unflatten(-1, (m.heads, -1)).transpose(1, 2) for part in m.qkv(x).chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)


def _attention_maker(function: Callable[[nn.Module, Tensor], Tensor]) -> Maker:
    def make(B: int, T: int, d: int) -> nn.Module:
        heads = 2 if d % 2 == 0 else 1
        module = Named(function, qkv=nn.Linear(d, 3 * d), out=nn.Linear(d, d), bias=parameter(heads, T, T))
        module.heads = heads
        return module

    return make


def _class_token(m: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([m.token.expand(x.shape[0], -1, -1), x[:, 1:]], 1)


def _recurrence(m: nn.Module, x: Tensor) -> Tensor:
    h = m.start.expand(x.shape[0], -1)
    out = []
    for row in x.unbind(1):
        h = torch.tanh(m.cell(torch.cat([row, h], -1)))
        out.append(h)
    return torch.stack(out, 1)


def _written(m: nn.Module, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :1] = m.first(x[:, :1])
    out[:, 1:] = x[:, 1:] * m.scale
    return out


def _picked(m: nn.Module, x: Tensor) -> Tensor:
    ids = (x.detach().abs() * 10).long() % m.table.num_embeddings
    return x + m.table(ids).mean(-2)


def _masked(m: nn.Module, x: Tensor) -> Tensor:
    return torch.where(x.detach().sum(-1, keepdim=True) > 0, m.inner(x), m.fill)


POINTWISE: dict[str, Maker] = {
    "linear": lambda B, T, d: nn.Linear(d, d),
    "linear without bias": lambda B, T, d: nn.Linear(d, d, bias=False),
    "mlp": lambda B, T, d: nn.Sequential(nn.Linear(d, d + 1), nn.GELU(), nn.Linear(d + 1, d)),
    "relu in place": lambda B, T, d: Named(_in_place, inner=nn.Linear(d, d)),
    "scale in place": lambda B, T, d: Named(_scaled_in_place, scale=parameter(d), shift=parameter(d)),
    "layer norm": lambda B, T, d: nn.LayerNorm(d, eps=EPS),
    "layer norm without bias": lambda B, T, d: nn.LayerNorm(d, eps=EPS, bias=False),
    "rms norm": lambda B, T, d: nn.RMSNorm(d, eps=EPS),
    "scale": lambda B, T, d: Named(lambda m, x: x * m.scale + m.shift, scale=parameter(d), shift=parameter(1)),
    "matrix": lambda B, T, d: Named(lambda m, x: x @ m.weight + m.shift, weight=parameter(d, d), shift=parameter(d)),
    "weight norm": lambda B, T, d: nn.utils.parametrizations.weight_norm(nn.Linear(d, d)),
    "derived weight": lambda B, T, d: Named(
        lambda m, x: F.linear(x, m.w / (1 + m.w.norm(dim=1, keepdim=True)), m.v * 2), w=parameter(d, d), v=parameter(d)
    ),
    "low rank": lambda B, T, d: Named(
        _lora, base=nn.Linear(d, d).requires_grad_(False), down=nn.Linear(d, 1, bias=False), up=nn.Linear(1, d)
    ),
    "tanh": lambda B, T, d: nn.Tanh(),
    "gate": lambda B, T, d: Named(lambda m, x: F.glu(m.inner(x), -1), inner=nn.Linear(d, 2 * d)),
    "some rows": lambda B, T, d: Named(_masked, inner=nn.Linear(d, d), fill=parameter(d)),
    "look-up": lambda B, T, d: Named(_picked, table=nn.Embedding(d, d)),
}
"""Blocks that see the last dimension only."""


BLOCKS: dict[str, Maker] = {
    "conv1d": lambda B, T, d: Named(lambda m, x: m.conv(x.mT).mT, conv=nn.Conv1d(d, d, 3, padding=1)),
    "depthwise": lambda B, T, d: Named(
        lambda m, x: m.conv(x.transpose(1, 2)).transpose(1, 2), conv=nn.Conv1d(d, d, 3, padding="same", groups=d)
    ),
    "pointwise conv": lambda B, T, d: Named(lambda m, x: m.conv(x.mT).mT, conv=nn.Conv1d(d, d, 1)),
    "circular conv": lambda B, T, d: Named(
        lambda m, x: m.conv(x.mT).mT, conv=nn.Conv1d(d, d, 2 * min(T, 2) - 1, padding="same", padding_mode="circular")
    ),
    "conv2d": lambda B, T, d: Named(lambda m, x: m.conv(x.unsqueeze(1)).mean(1), conv=nn.Conv2d(1, 2, 3, padding=1)),
    "conv of frames": lambda B, T, d: Named(
        lambda m, x: m.conv(x.flatten(0, 1).unsqueeze(1)).squeeze(1).unflatten(0, x.shape[:2]),
        conv=nn.Conv1d(1, 1, 3, padding=1),
    ),
    "group norm": lambda B, T, d: Named(
        lambda m, x: m.norm(x.mT).mT, norm=nn.GroupNorm(2 if d == 4 else 1, d, eps=EPS)
    ),
    "group norm of positions": lambda B, T, d: nn.GroupNorm(1, T, eps=EPS),
    "instance norm": lambda B, T, d: Named(
        lambda m, x: m.norm(torch.cat([x, x * 0.5], 1).mT).mT[:, : x.shape[1]],
        norm=nn.InstanceNorm1d(d, eps=EPS, affine=True),
    ),
    "layer norm of all": lambda B, T, d: nn.LayerNorm((T, d), eps=EPS),
    "attention": _attention_maker(_attention),
    "fused attention": _attention_maker(_fused_attention),
    "class token": lambda B, T, d: Named(_class_token, token=parameter(1, 1, d)),
    "positions": lambda B, T, d: Named(lambda m, x: x + m.table[: x.shape[1]], table=parameter(T + 1, d)),
    "position ids": lambda B, T, d: Named(
        lambda m, x: x + m.table(torch.arange(x.shape[1]).expand(x.shape[0], -1)), table=nn.Embedding(T, d)
    ),
    "position scale": lambda B, T, d: Named(lambda m, x: x * m.scale, scale=parameter(1, T, 1)),
    "mixed positions": lambda B, T, d: Named(lambda m, x: m.inner(x.transpose(1, 2)).mT, inner=nn.Linear(T, T)),
    "weight on the left": lambda B, T, d: Named(lambda m, x: m.weight @ x, weight=parameter(T, T)),
    "whole sample": lambda B, T, d: Named(
        lambda m, x: m.inner(x.flatten(1)).view(x.shape), inner=nn.Linear(T * d, T * d)
    ),
    "mean over positions": lambda B, T, d: Named(
        lambda m, x: x + m.inner(x.mean(1)).unsqueeze(1), inner=nn.Linear(d, d)
    ),
    "recurrence": lambda B, T, d: Named(_recurrence, cell=nn.Linear(2 * d, d), start=parameter(d)),
    "written rows": lambda B, T, d: Named(_written, first=nn.Linear(d, d), scale=parameter(d)),
    "running sum": lambda B, T, d: Named(lambda m, x: (x * m.scale).cumsum(1), scale=parameter(T, 1)),
    "flipped": lambda B, T, d: Named(lambda m, x: m.inner(x.flip(1)).roll(1, 1), inner=nn.Linear(d, d)),
}
"""Blocks that see a whole sample."""


def _multi_head(batch_first: bool) -> Maker:
    def call(m: nn.Module, x: Tensor) -> Tensor:
        if batch_first:
            return m.attention(x, x, x, need_weights=False)[0]
        x = x.transpose(0, 1)
        return m.attention(x, x, x, need_weights=False)[0].transpose(0, 1)

    def make(B: int, T: int, d: int) -> nn.Module:
        heads = 2 if d % 2 == 0 else 1
        return Named(call, attention=nn.MultiheadAttention(d, heads, batch_first=batch_first))

    return make


def _encoder(B: int, T: int, d: int) -> nn.Module:
    return nn.TransformerEncoderLayer(d, 1, d, dropout=0.0, batch_first=True, layer_norm_eps=EPS)


def _cell(m: nn.Module, x: Tensor) -> Tensor:
    h = m.start.expand(x.shape[0], -1)
    c = torch.zeros_like(h)
    out = []
    for row in x.unbind(1):
        h, c = m.cell(row, (h, c))
        out.append(h)
    return torch.stack(out, 1)


def _bag(m: nn.Module, x: Tensor) -> Tensor:
    ids = (x.detach().abs() * 10).long() % m.table.num_embeddings
    return x + m.table(ids.flatten(1)).unsqueeze(1)


def _distances(m: nn.Module, x: Tensor) -> Tensor:
    return (-torch.cdist(x, m.centers) / 4).exp()


POINTWISE |= {
    "prelu": lambda B, T, d: nn.PReLU(init=0.3),
    "bilinear": lambda B, T, d: Named(lambda m, x: m.inner(x, x.tanh()), inner=nn.Bilinear(d, d, d)),
    "einsum": lambda B, T, d: Named(
        lambda m, x: torch.einsum("...d,pd->...p", x, m.weight) + m.shift, weight=parameter(d, d), shift=parameter(d)
    ),
}

BLOCKS |= {
    "multi-head": _multi_head(True),
    "multi-head, time first": _multi_head(False),
    "encoder layer": _encoder,
    "lstm": lambda B, T, d: Named(lambda m, x: m.inner(x)[0], inner=nn.LSTM(d, d, batch_first=True)),
    "two-way gru": lambda B, T, d: Named(
        lambda m, x: m.inner(x)[0].unflatten(-1, (2, -1)).sum(-2),
        inner=nn.GRU(d, d, batch_first=True, bidirectional=True),
    ),
    "rnn, time first": lambda B, T, d: Named(
        lambda m, x: m.inner(x.transpose(0, 1))[0].transpose(0, 1), inner=nn.RNN(d, d, num_layers=2)
    ),
    "lstm cell": lambda B, T, d: Named(_cell, cell=nn.LSTMCell(d, d), start=parameter(d)),
    "bag": lambda B, T, d: Named(_bag, table=nn.EmbeddingBag(d, d, mode="sum")),
    "mean bag": lambda B, T, d: Named(_bag, table=nn.EmbeddingBag(d, d, mode="mean")),
    "transposed conv": lambda B, T, d: Named(lambda m, x: m.conv(x.mT).mT, conv=nn.ConvTranspose1d(d, d, 3, padding=1)),
    "einsum over heads": lambda B, T, d: Named(
        lambda m, x: torch.einsum("btd,hdp->bhtp", x, m.weight).mean(1), weight=parameter(2, d, d)
    ),
    "distances": lambda B, T, d: Named(_distances, centers=parameter(d, d)),
}
