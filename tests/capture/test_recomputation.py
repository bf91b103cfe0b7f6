"""Reentrant checkpoints, and what crosses them: tensors made of parameters alone, and constants."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tacit.errors import FallbackWarning, LeakError, PrivacyError, SecondBackwardError, UnseenError
from tacit.testing import check_exactness, private_gradients

T, D = 3, 4


class Block(nn.Module):
    """Adds a bias over positions that it makes, or was handed, and hands it on."""

    def __init__(self, *, makes: bool, grows: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)
        self.table = nn.Embedding(2 * T, D) if makes else None
        self.grows = nn.Parameter(torch.rand(1, D)) if grows else None

    def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        if bias is None:
            bias = self.table(torch.arange(T) + 1) if self.table is not None else torch.full((T, D), 0.5).to(x)
        if self.grows is not None:
            bias = bias * self.grows
        return torch.tanh(self.linear(x) + bias), bias


class Stack(nn.Module):
    def __init__(self, *blocks: nn.Module, repeats: int = 1) -> None:
        super().__init__()
        self.blocks, self.repeats = nn.ModuleList(blocks), repeats

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bias = None
        for block in self.blocks:
            for _ in range(self.repeats):
                x, bias = checkpoint(block, x, bias, use_reentrant=True)
        return x, bias


def inputs(B: int = 3) -> Tensor:
    return torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)


def hold(model: nn.Module, loss: Any, B: int = 3) -> None:
    torch.manual_seed(0)
    report = check_exactness(model.double(), loss, inputs(B), tolerance=1e-9)
    assert float(report.reference.norms.min()) > 0


def on_values(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)[0].square().mean((1, 2)).mean()


@pytest.mark.parametrize("B", [1, 3, 4])
@pytest.mark.parametrize(
    ("makes", "grows"),
    [([1, 0, 0], [0, 0, 0]), ([1, 0, 0], [0, 1, 0]), ([1, 0], [1, 1]), ([0, 0], [0, 0]), ([0, 0], [0, 1]), ([1], [0])],
)
def test_what_is_made_of_parameters_crosses(makes: list[int], grows: list[int], B: int) -> None:
    """Handed on unchanged, changed by other parameters, never used again; and a constant."""
    torch.manual_seed(0)
    blocks = [Block(makes=bool(m), grows=bool(g)) for m, g in zip(makes, grows, strict=True)]
    hold(Stack(*blocks), on_values, B)


def test_used_behind_the_checkpoint() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack, self.head = Stack(Block(makes=True), Block(makes=False)), nn.Linear(D, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            x, bias = self.stack(x)
            return (self.head(x * bias),)

    torch.manual_seed(0)
    hold(Net(), on_values)


def test_made_within_one_checkpoint_for_another_module() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.rand(2 * T, D))

        def forward(self, n: int) -> Tensor:
            return self.table[:n] * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.block = Positions(), Block(makes=False)

        def inner(self, x: Tensor) -> Tensor:
            return self.block(x, self.positions(T))[0]

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (checkpoint(self.inner, x, use_reentrant=True),)

    torch.manual_seed(0)
    hold(Net(), on_values)


def test_a_module_that_is_called_several_times_is_refused() -> None:
    """Which of its calls a bias came from cannot be told."""
    torch.manual_seed(0)
    model = Stack(Block(makes=True, grows=True), repeats=2).double()
    with pytest.raises(LeakError, match=r"output 2 of blocks\.0.*called several times.*use_reentrant=False"):
        private_gradients(model, on_values, inputs(), max_grad_norm=1.0)


def test_a_loss_on_what_crossed_is_refused() -> None:
    """A penalty on the bias is no sample's: its gradient has no bound."""
    torch.manual_seed(0)
    model = Stack(Block(makes=True), Block(makes=False)).double()
    with pytest.raises(PrivacyError, match="without passing the clipping"):
        private_gradients(
            model,
            lambda m, x: (lambda out: on_values(lambda _: out, x) + out[1].sum())(m(x)),
            inputs(),
            max_grad_norm=1.0,
        )


class Handing(nn.Module):
    """Checkpoints that change nothing: autograd makes other objects of what they hand on."""

    def __init__(self, inner: nn.Module | None) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(D, D), inner, nn.Linear(D, D)

    def outer(self, x: Tensor) -> Tensor:
        inner = (lambda value: value) if self.inner is None else self.inner
        return checkpoint(inner, x, use_reentrant=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.last(checkpoint(self.outer, self.first(x), use_reentrant=True)),)


@pytest.mark.parametrize("B", [1, 3, 4])
def test_a_module_that_hands_the_batch_on(B: int) -> None:
    torch.manual_seed(0)
    hold(Handing(nn.Sequential(nn.Identity())), on_values, B)


@pytest.mark.parametrize("B", [1, 3, 4])
def test_a_function_that_hands_the_batch_on_is_not_seen(B: int) -> None:
    """What it returns may be of the batch: never taken for something made of parameters."""
    torch.manual_seed(0)
    with pytest.raises(UnseenError, match="may have been computed from the batch"):
        private_gradients(Handing(None).double(), on_values, inputs(B), max_grad_norm=1.0)


def test_within_a_checkpointed_module_a_function_that_hands_the_batch_on() -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(lambda value: value, x, use_reentrant=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.hidden, self.last = nn.Linear(D, D), Hidden(), nn.Linear(D, D)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            h = self.first(x)
            return (self.last(x * checkpoint(self.hidden, h, use_reentrant=True)),)

    torch.manual_seed(0)
    with pytest.raises(PrivacyError, match="could not be seen|use_reentrant"):
        private_gradients(Net().double(), on_values, inputs(), max_grad_norm=1.0)


def test_a_pull_back_that_recomputes_a_checkpoint_around_another() -> None:
    """The gradient of a derived weight unpacks what the outer checkpoint saved: all that runs is one backward."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(D, D)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(D, D))
            self.scale = nn.Parameter(torch.rand(1))

        def outer(self, x: Tensor) -> Tensor:
            return self.normed(checkpoint(self.normed, x, use_reentrant=True))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (self.scale * checkpoint(self.outer, self.first(x), use_reentrant=False),)

    torch.manual_seed(0)
    hold(Net(), on_values)


class Functions(nn.Module):
    """Blocks in checkpoints in checkpointed functions, which no module stands for."""

    def __init__(self, outer: bool, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(makes=True) for _ in range(blocks)])
        self.outer, self.head = outer, nn.Linear(D, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        for block in self.blocks:

            def inner(x: Tensor, block: nn.Module = block) -> Tensor:
                return checkpoint(block, x, None, use_reentrant=True)[0]

            x = checkpoint(inner, x, use_reentrant=self.outer)
        return (self.head(x),)


@pytest.mark.parametrize("mode", ["auto", "hooks", "ghost"])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("B", [1, 3, 4])
def test_a_checkpoint_in_a_checkpointed_function(outer: bool, blocks: int, B: int, mode: str) -> None:
    torch.manual_seed(0)
    report = check_exactness(
        Functions(outer, blocks).double(), on_values, inputs(B), grad_sample_mode=mode, tolerance=1e-9
    )
    assert float(report.reference.norms.min()) > 0


class Solves(nn.Module):
    """Has no rule, so that it runs on single samples; with a checkpoint inside, if there is a kind to make it of."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.inner, self.reentrant = nn.Linear(D, D), reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x) if self.reentrant is None else checkpoint(self.inner, x, use_reentrant=self.reentrant)
        return torch.linalg.solve(self.inner.weight + 2 * torch.eye(D).to(x), h.mT).mT


class Around(nn.Module):
    """A module, and perhaps a checkpoint around it."""

    def __init__(self, inner: nn.Module, reentrant: bool | None = None) -> None:
        super().__init__()
        self.first, self.inner, self.reentrant = nn.Linear(D, D), inner, reentrant

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.first(x)
        return (self.inner(x) if self.reentrant is None else checkpoint(self.inner, x, use_reentrant=self.reentrant),)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_within_a_module_that_runs_apart_is_refused(reentrant: bool) -> None:
    """It would be recomputed with the parameters themselves, not with the copies. Either kind: so the other one is no
    way out, and what the words advise instead is."""
    torch.manual_seed(0)
    everywhere = Around(nn.Linear(D, D), reentrant).double()
    with pytest.raises(SecondBackwardError, match=r'of either kind.*single samples.*use grad_sample_mode="auto"'):
        private_gradients(everywhere, on_values, inputs(), max_grad_norm=1.0, grad_sample_mode="functorch")
    hold(everywhere, on_values)
    alone = Around(Solves(reentrant)).double()
    with pytest.warns(FallbackWarning), pytest.raises(SecondBackwardError, match="around that module"):
        private_gradients(alone, on_values, inputs(), max_grad_norm=1.0)
    with pytest.warns(FallbackWarning):
        hold(Around(Solves(None), reentrant=False), on_values)
