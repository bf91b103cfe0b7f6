"""Recurrent layers and cells, unmodified."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.testing import private_gradients

SIZES = pytest.mark.parametrize(("B", "T", "d"), [(3, 5, 4), (4, 4, 4), (1, 3, 4), (2, 1, 4)])
LAYERS = [nn.LSTM, nn.GRU, nn.RNN]
SETTINGS: list[dict[str, Any]] = [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "num_layers": 3}]


class Recurrent(nn.Module):
    """A recurrent layer whose last states, too, are part of the output."""

    def __init__(self, layer: Any, d: int = 4, hidden: int = 4, **settings: Any) -> None:
        super().__init__()
        self.rnn = layer(d, hidden, **settings)

    def forward(self, x: Tensor, states: Any = None) -> Tensor:
        y, last = self.rnn(x, states)
        ends = sum(value.sin().sum((0, 2)) for value in (last if isinstance(last, tuple) else (last,)))
        return y + (ends[:, None, None] if self.rnn.batch_first else ends[None, :, None])


def inputs(B: int, T: int, d: int, *, batch_first: bool) -> Tensor:
    return torch.randn(B, T, d) if batch_first else torch.randn(T, B, d)


@SIZES
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("settings", SETTINGS, ids=["one", "two, both ways", "three, no bias"])
def test_layers(exact: Any, layer: Any, settings: Any, B: int, T: int, d: int) -> None:
    for batch_first in (True, False):
        model = Recurrent(layer, d, batch_first=batch_first, **settings)
        exact(model, inputs(B, T, d, batch_first=batch_first), batch_first=batch_first)


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("B", [1, 3, 4])
def test_projected_lstm(exact: Any, B: int, settings: Any) -> None:
    exact(Recurrent(nn.LSTM, 4, 5, proj_size=4, batch_first=True, **settings), torch.randn(B, 4, 4))


def test_rectified(exact: Any) -> None:
    exact(Recurrent(nn.RNN, nonlinearity="relu", batch_first=True, num_layers=2), torch.randn(3, 5, 4))


@pytest.mark.parametrize("layer", LAYERS)
def test_other_widths_and_types(exact_any: Any, layer: Any) -> None:
    if exact_any.dtype is not torch.bfloat16:
        exact_any(Recurrent(layer, 3, 5, batch_first=True), torch.randn(4, 6, 3))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", ["of the batch", "parameters", "constants"])
def test_initial_states(exact: Any, layer: Any, kind: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Recurrent(layer, batch_first=True)
            self.h, self.c = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 1, 4))

        def forward(self, x: Tensor, given: Tensor) -> Tensor:
            h, c = self.h.expand(-1, len(x), -1), self.c.expand(-1, len(x), -1)
            if kind == "of the batch":
                h, c = (h + given).contiguous(), (c * given).contiguous()
            if kind == "constants":
                h = c = torch.ones(1, len(x), 4, dtype=x.dtype)
            return self.inner(x, (h, c) if layer is nn.LSTM else h)

    for B in (1, 3, 4):
        exact(Net(), torch.randn(B, 4, 4), torch.randn(B, 4))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "all"])
def test_frozen_parts(exact: Any, layer: Any, frozen: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rnn, self.head = nn.Linear(4, 4), layer(4, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(self.first(x))[0])

    model = Net()
    for name, parameter in model.rnn.named_parameters():
        parameter.requires_grad_(frozen not in (name, "all"))
    exact(model, torch.randn(3, 4, 4))


@pytest.mark.parametrize("layer", LAYERS)
def test_dropout_between_layers_is_that_of_the_forward(layer: Any) -> None:
    """All of a layer's inputs dropped: then its input weights get no gradient."""
    torch.manual_seed(0)
    model = layer(4, 4, num_layers=2, dropout=1.0, batch_first=True).double()
    engine = PrivacyEngine()
    engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        data_loader=DataLoader(TensorDataset(torch.arange(3)), batch_size=3),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
    )
    model(torch.randn(3, 4, 4).double())[0].square().mean().backward()
    assert engine.stats is not None
    assert torch.isfinite(engine.stats.norms).all()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert not gradients["weight_ih_l1"].any()
    assert not gradients["weight_hh_l0"].any()
    assert gradients["weight_hh_l1"].any()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_activation_checkpointing(exact: Any, layer: Any, reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.block, self.head = nn.Linear(4, 4), Recurrent(layer, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.block, self.first(x), use_reentrant=reentrant))

    exact(Net(), torch.randn(4, 4, 4))


class Unrolled(nn.Module):
    """A cell in a Python loop, by unbind, with the input weight used once more at the end."""

    def __init__(self, cell: Any, **settings: Any) -> None:
        super().__init__()
        self.cell = cell(4, 4, **settings)

    def forward(self, x: Tensor) -> Tensor:
        state, outs = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outs, 1) @ self.cell.weight_ih.t()


@SIZES
@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(exact: Any, cell: Any, B: int, T: int, d: int) -> None:
    exact(Unrolled(cell), torch.randn(B, T, d))


def test_cells_without_bias_and_rectified(exact: Any) -> None:
    exact(Unrolled(nn.LSTMCell, bias=False), torch.randn(4, 4, 4))
    exact(Unrolled(nn.RNNCell, nonlinearity="relu"), torch.randn(4, 4, 4))


def test_two_layers_with_one_weight(exact: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.GRU(4, 4, batch_first=True), nn.GRU(4, 4, batch_first=True)
            self.two.weight_hh_l0 = self.one.weight_hh_l0

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(self.one(x)[0])[0])[0]

    exact(Net(), torch.randn(3, 4, 4))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_the_forward_is_torchs_own(layer: Any, batch_first: bool) -> None:
    torch.manual_seed(0)
    model = Recurrent(layer, batch_first=batch_first, num_layers=2, bidirectional=True).double()
    x, seen = inputs(3, 5, 4, batch_first=batch_first).double(), []

    def loss(m: nn.Module, batch: Tensor) -> Tensor:
        seen.append(m(batch))
        return seen[-1].sum()

    loss(model, x)
    private_gradients(model, loss, x, max_grad_norm=1.0, batch_first=batch_first)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-12, atol=1e-12)


def test_autocast() -> None:
    torch.manual_seed(0)
    model, x = Recurrent(nn.LSTM, batch_first=True), torch.randn(3, 5, 4)

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m(x).float().square().mean()

    norms, _ = private_gradients(model, loss, x, max_grad_norm=1.0)
    exactly, _ = private_gradients(model, lambda m, x: m(x).square().mean(), x, max_grad_norm=1.0)
    torch.testing.assert_close(norms, exactly, rtol=0.05, atol=0.0)
