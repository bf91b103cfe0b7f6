"""Random models as programs: every drawn program is a valid model, and its ``repr`` replays it.

A program is a front, a body of blocks that keep the shape (B, T, d), and a head. Blocks nest: branches, repetitions,
views of the batch, checkpoints. To replay a failure, paste the printed ``Program(...)`` into a test::

    case = build(Program(B=4, T=4, d=4, ...), torch.float64)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from blocks import BLOCKS, POINTWISE, Named, parameter
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Leaf:
    """A new block of the table."""

    name: str


@dataclass(frozen=True)
class Again:
    """An earlier leaf, called once more (the ``index``-th one that fits here, counted round)."""

    index: int


@dataclass(frozen=True)
class Tied:
    """``F.linear`` with the weight of an earlier leaf, or with its transpose."""

    index: int
    transposed: bool


@dataclass(frozen=True)
class Repeat:
    """The body, several times."""

    times: int
    body: tuple[Any, ...]


@dataclass(frozen=True)
class Branch:
    """The body beside its input: see ``BRANCHES``."""

    kind: str
    body: tuple[Any, ...]


@dataclass(frozen=True)
class View:
    """The body on another view of its input: see ``VIEWS``."""

    kind: str
    body: tuple[Any, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The body under activation checkpointing."""

    reentrant: bool
    body: tuple[Any, ...]


@dataclass(frozen=True)
class Program:
    """A model, its loss and its batch.

    Attributes:
        B: samples.
        T: positions.
        d: features.
        front: what the batch is, see ``FRONTS``.
        body: blocks.
        head: what the output is, see ``HEADS``.
        frozen: bit i freezes the i-th parameter; the last one is never frozen.
        reduction: of the loss.
        seed: of parameters and data.
    """

    B: int
    T: int
    d: int
    front: str
    body: tuple[Any, ...]
    head: str
    frozen: int
    reduction: str
    seed: int


def _without_gradient(body: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        h = body(x)
    return x * h


BRANCHES: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "residual": lambda body, x: x + body(x),
    "product": lambda body, x: x * body(x).tanh(),
    "detached": lambda body, x: x + body(x).detach(),
    "of a detached input": lambda body, x: x + body(x.detach()),
    "without gradient": _without_gradient,
    "twice": lambda body, x: body(x) + body(x.tanh()).mul(0.5),
    "twice, once detached": lambda body, x: x - body(x) * body(x).detach(),
    "cancelling in part": lambda body, x: body(x) - 0.9 * body(x) + x,
}

VIEWS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "rows": lambda body, x: body(x.reshape(-1, x.shape[-1])).reshape(x.shape),
    "time first": lambda body, x: body(x.transpose(0, 1)).transpose(0, 1),
    "rows, time first": lambda body, x: (
        body(x.transpose(0, 1).reshape(-1, x.shape[-1])).view(x.shape[1], x.shape[0], -1).transpose(0, 1)
    ),
    "positions": lambda body, x: torch.stack([body(row) for row in x.unbind(1)], 1),
    "split": lambda body, x: torch.cat([body(x[:, :1]), body(x[:, 1:])], 1) if x.shape[1] > 1 else body(x),
    "two views": lambda body, x: sum(body(torch.cat([x, x.tanh()], 0)).chunk(2, 0)),
    "interleaved": lambda body, x: body(x.repeat_interleave(2, 0)).unflatten(0, (-1, 2)).mean(1),
    "heads": lambda body, x: body(x.unsqueeze(1).expand(-1, 2, -1, -1)).sum(1),
    "strided": lambda body, x: body(torch.stack([x, -x], -1)[..., 0]),
}
"""Views under which only pointwise blocks make sense."""


class Chain(nn.Module):
    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class Around(nn.Module):
    """``how(body, x)``."""

    def __init__(self, how: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor], body: nn.Module) -> None:
        super().__init__()
        self.how, self.body = how, body

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.body, x)


class Borrowed(nn.Module):
    """Uses the weight of another module, which is held outside this module's own list."""

    def __init__(self, source: nn.Module, transposed: bool) -> None:
        super().__init__()
        self.source, self.transposed = source, transposed

    def forward(self, x: Tensor) -> Tensor:
        weight = self.source.weight
        return F.linear(x, weight.t() if self.transposed else weight) * 0.5


class Repeated(nn.Module):
    def __init__(self, times: int, body: nn.Module) -> None:
        super().__init__()
        self.times, self.body = times, body

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = torch.tanh(self.body(x))
        return x


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool, body: nn.Module) -> None:
        super().__init__()
        self.reentrant, self.body = reentrant, body

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:  # reentrant checkpointing gives no gradients then
            return self.body(x)
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


class Builder:
    """Turns blocks into modules; remembers the leaves, so that later blocks can use them again."""

    def __init__(self, program: Program) -> None:
        self._sizes = program.B, program.T, program.d
        self._leaves: list[tuple[nn.Module, bool]] = []
        self.sources: list[nn.Module] = []

    def chain(self, blocks: tuple[Any, ...], *, pointwise: bool = False) -> nn.Module:
        return Chain([self.block(block, pointwise) for block in blocks])

    def block(self, block: Any, pointwise: bool) -> nn.Module:
        match block:
            case Leaf(name):
                return self._leaf(name)
            case Again(index):
                fitting = [leaf for leaf, everywhere in self._leaves if everywhere or not pointwise]
                return fitting[index % len(fitting)] if fitting else nn.Identity()
            case Tied(index, transposed):
                if not self.sources:
                    return nn.Identity()
                return Borrowed(self.sources[index % len(self.sources)], transposed)
            case Repeat(times, body):
                return Repeated(times, self.chain(body, pointwise=pointwise))
            case Branch(kind, body):
                return Around(BRANCHES[kind], self.chain(body, pointwise=pointwise))
            case View(kind, body):
                return Around(VIEWS[kind], self.chain(body, pointwise=True))
            case Checkpoint(reentrant, body):
                return Checkpointed(reentrant, self.chain(body, pointwise=pointwise))
        raise TypeError(block)

    def _leaf(self, name: str) -> nn.Module:
        everywhere = name in POINTWISE
        module = (POINTWISE[name] if everywhere else BLOCKS[name])(*self._sizes)
        self._leaves.append((module, everywhere))
        self.remember_weights(module)
        return module

    def remember_weights(self, module: nn.Module) -> None:
        square = (self._sizes[2], self._sizes[2])
        weights = {m: getattr(m, "weight", None) for m in module.modules()}
        self.sources += [m for m, w in weights.items() if isinstance(w, Tensor) and w.shape == square]


FRONTS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "values": lambda B, T, d: nn.Identity(),
    "projected": lambda B, T, d: nn.Linear(d, d),
    "ids": lambda B, T, d: nn.Embedding(d, d),
    "ids, padded": lambda B, T, d: nn.Embedding(d, d, padding_idx=0, scale_grad_by_freq=True),
    "ids and positions": lambda B, T, d: Named(
        lambda m, ids: m.words(ids) + m.places(torch.arange(ids.shape[1])[None]),
        words=nn.Embedding(d, d),
        places=nn.Embedding(T, d),
    ),
}

HEADS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "all": lambda m, x: x,
    "mean": lambda m, x: m.head(x.mean(1)),
    "first": lambda m, x: m.head(x[:, 0]),
    "flat": lambda m, x: x.flatten(1),
    "one number": lambda m, x: m.head(x).mean((1, 2)),
    "words": lambda m, x: m.head(x),
}


class Model(nn.Module):
    """Front, body and head; the last parameter scales the output."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        builder = Builder(program)
        sizes = program.B, program.T, program.d
        self.front = FRONTS[program.front](*sizes)
        builder.remember_weights(self.front)
        self.body = builder.chain(program.body)
        self.head = nn.Linear(program.d, program.d)
        if program.head == "words" and isinstance(self.front, nn.Embedding):
            self.head.weight = self.front.weight
        self.scale = parameter(1)
        self.kind = program.head
        others = [p for p in self.parameters() if p is not self.scale]
        for i, p in enumerate(others):
            if program.frozen >> i & 1:
                p.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(self.front(x))
        return HEADS[self.kind](self, h) * self.scale


@dataclass(frozen=True)
class Case:
    """What a program stands for.

    Attributes:
        model: in train mode.
        batch: inputs and targets, each with the batch in front.
        criterion: the loss module.
        loss_fn: ``loss_fn(model, batch, criterion)``.
    """

    model: nn.Module
    batch: tuple[Tensor, Tensor]
    criterion: nn.Module

    @staticmethod
    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor], criterion: nn.Module) -> Tensor:
        output = model(batch[0])
        if not batch[1].is_floating_point():
            output = output.transpose(1, 2)
        return criterion(output, batch[1])


def build(program: Program, dtype: torch.dtype) -> Case:
    """Make model, batch and loss of a program: always the same for the same program."""
    torch.manual_seed(program.seed)
    model = Model(program).to(dtype)
    shape = program.B, program.T, program.d
    if program.front.startswith("ids"):
        x = torch.randint(0, program.d, shape[:2])
    else:
        x = torch.randn(shape, dtype=torch.float64).to(dtype)
    if program.head == "words":
        return Case(
            model, (x, torch.randint(0, program.d, shape[:2])), nn.CrossEntropyLoss(reduction=program.reduction)
        )
    with torch.no_grad():
        target = torch.randn_like(model(x.clone()), dtype=torch.float64).to(dtype)
    return Case(model, (x, target), nn.MSELoss(reduction=program.reduction))


INDICES = st.integers(0, 7)
REPEATABLE = [name for name in POINTWISE if "in place" not in name]


@st.composite
def bodies(draw: st.DrawFn, depth: int, *, pointwise: bool = False, least: int = 0) -> tuple[Any, ...]:
    """A few blocks; deeper ones inside them while ``depth`` lasts."""
    return tuple(draw(blocks(depth, pointwise)) for _ in range(draw(st.integers(least, 3 if depth > 1 else 2))))


def blocks(depth: int, pointwise: bool) -> st.SearchStrategy[Any]:
    names = list(POINTWISE) if pointwise else [*POINTWISE, *BLOCKS]
    plain = [
        st.builds(Leaf, st.sampled_from(names)),
        st.builds(Leaf, st.sampled_from(names)),
        st.builds(Again, INDICES) | st.builds(Tied, INDICES, st.booleans()),
    ]
    if depth == 0:
        return st.one_of(plain)
    inner = bodies(depth - 1, pointwise=pointwise, least=1)
    flat = bodies(depth - 1, pointwise=True, least=1)
    nested = [
        st.builds(Repeat, st.integers(2, 3), inner),
        st.builds(Branch, st.sampled_from(list(BRANCHES)), inner),
        st.builds(Checkpoint, st.booleans(), inner),
    ]
    if not pointwise:
        nested.append(st.builds(View, st.sampled_from(list(VIEWS)), flat))
    return st.one_of(*plain, *nested)


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    """B, T and d, which coincide every other time."""
    if draw(st.booleans()):
        n = draw(st.integers(2, 4))
        return n, n, n
    return draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(2, 4))


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Any program."""
    B, T, d = draw(sizes())
    return Program(
        B,
        T,
        d,
        draw(st.sampled_from(list(FRONTS))),
        draw(bodies(2, least=1)),
        draw(st.sampled_from(list(HEADS))),
        draw(st.just(0) | st.integers(0, 2**12 - 1)),
        draw(st.sampled_from(["mean", "sum"])),
        draw(st.integers(0, 99)),
    )
