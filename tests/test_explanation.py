"""What is said of each strategy, and that nothing of a batch is kept for it."""

import gc

import pytest
import torch
import torch.nn.functional as F
from tests.small_run import make, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.errors import ConfigurationError
from tacit.explanation import Explanation, Held, note
from tacit.uses import Dense, Gather, Outer, Routed, Use, join


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.table(ids).transpose(1, 2)).transpose(1, 2)
        return F.linear(x * self.scale, self.table.weight).mean(1)


def test_every_parameter_is_listed_and_totals_add_up() -> None:
    torch.manual_seed(0)
    model, engine = Tied(), PrivacyEngine()
    data = TensorDataset(torch.randint(0, 9, (12, 5)), torch.randint(0, 9, (12,)))
    made = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=12),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    assert "No private backward" in engine.explain().text
    train(*made, steps=1)
    found = engine.explain()
    assert [one.name for one in found.parameters] == [name for name, _ in model.named_parameters()]
    by_name = {one.name: one for one in found.parameters}
    assert by_name["table.weight"].strategy == "table and head together, by their inner products"
    assert by_name["conv.bias"].strategy == "whole gradients of single samples"
    assert by_name["conv.bias"].held == 12 * 4 * 4
    assert by_name["scale"].shape == ()
    text = found.text
    assert "9×4" in text
    assert "scalar" in text
    assert f"{sum(one.held for one in found.parameters) / 1e6:8.2f} MB" in text.splitlines()[4]
    assert set(by_name["conv.weight"].measured) >= {"grouped", "unfolded"}
    assert "grouped ?|" in text


def test_every_kind_has_words() -> None:
    a, g = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
    table = Gather(torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 3, 4), 5)
    uses: list[Use] = [
        Dense(torch.randn(2, 7)),
        Outer(a, g, torch.Size((5, 4))),
        Outer(a[:, :1], g[:, :1], torch.Size((5, 4))),
        table,
        Routed(a, g, torch.zeros(2, 3, dtype=torch.int64), 2),
        join([table, Outer(a, g, torch.Size((5, 4)))]),
    ]
    words = [note(use) for use in uses]
    assert len({one.strategy for one in words}) == len(uses)
    assert all(one.held > 0 for one in words)


def test_nothing_of_the_batch_is_kept() -> None:
    engine, *parts = make()
    train(*parts, steps=1)
    explanation = engine.explain()
    gc.collect()
    assert isinstance(explanation, Explanation)
    assert not any(isinstance(value, Tensor) for one in explanation.parameters for value in (one.name, one.strategy))


def test_predicted_and_measured_costs_of_matrix_products() -> None:
    torch.manual_seed(0)
    model, engine = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), PrivacyEngine()
    data = TensorDataset(torch.randn(12, 5, 6), torch.randint(0, 3, (12, 5)))
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=12),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    ((x, y),) = list(loader)
    F.cross_entropy(model(x).transpose(1, 2), y).backward()
    weight, bias, *_ = engine.explain().parameters
    assert set(weight.predicted) == {"gram", "stored"}
    assert weight.agree is None
    assert not bias.predicted
    measured = engine.explain(measure=True)
    assert set(measured.parameters[0].measured) == {"gram", "stored"}
    assert measured.parameters[0].agree in (True, False)
    assert "gram 0." in measured.text
    optimizer.step()


def test_agreement_is_about_the_quickest() -> None:
    def one(predicted: dict[str, float], measured: dict[str, float]) -> bool | None:
        return Held("w", (2, 2), "gram", 4, predicted, measured).agree

    assert one({"gram": 1.0, "stored": 2.0}, {"gram": 3.0, "stored": 9.0}) is True
    assert one({"gram": 1.0, "stored": 2.0}, {"gram": 3.0, "stored": 2.0}) is False
    assert one({}, {"gram": 3.0}) is None


def test_strategies_are_measured_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tacit.uses.TUNER.found", {})
    tried = []
    monkeypatch.setattr("tacit.uses.tuning._milliseconds", lambda attempt: tried.append(attempt) or len(tried))
    model, engine = nn.Linear(6, 3), PrivacyEngine()
    made = {
        "module": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "data_loader": DataLoader(TensorDataset(torch.randn(12, 5, 6)), batch_size=12),
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
    }
    with pytest.raises(ConfigurationError, match="'predict' or 'measure'"):
        engine.make_private(**made, tune="guess")
    _, _, loader = engine.make_private(**made, tune="measure")
    ((x,),) = list(loader)
    model(x).square().sum().backward()
    assert len(tried) == 2
    assert engine.explain().parameters[0].measured == {"gram": 1, "stored": 2}
