"""What mixes samples is found, by path; what only looks so is not."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.checking.check import CheckReport, check_model
from tacit.errors import ConfigurationError, PrivacyError

X, Y = torch.randn(6, 4), torch.randint(0, 3, (6,))


def classify(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Centered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def report(model: nn.Module, loss: Any = classify, batch: Any = (X, Y), **settings: Any) -> CheckReport:
    torch.manual_seed(0)
    return check_model(model, loss, batch, **settings)


MODELS = {
    "mlp with dropout": lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 3)),
    "attention with dropout": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.TransformerEncoderLayer(2, 1, 4, batch_first=True), nn.Flatten(), nn.Linear(4, 3)
    ),
    "noise inside": lambda: nn.Sequential(nn.Linear(4, 4), Noisy(), nn.Linear(4, 3)),
}


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5) + torch.randn_like(x) + torch.empty_like(x).normal_()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["auto", "hooks"])
def test_good_models_pass_in_spite_of_randomness(name: str, mode: str) -> None:
    before, model = torch.get_rng_state(), MODELS[name]()
    torch.set_rng_state(before)
    found = report(model, grad_sample_mode=mode)
    assert found.ok, str(found)
    assert found.norm_error < 1e-9
    assert "equals the loop over single samples" in str(found)


def test_a_layer_that_mixes_samples_is_named() -> None:
    found = report(nn.Sequential(nn.Linear(4, 4), nn.Sequential(Centered(), nn.Tanh()), nn.Linear(4, 3)))
    assert found.findings[0].kind == "layer"
    assert found.findings[0].path == "1.0"
    assert "1.0 (Centered; inputs [(4, 4)], outputs [(4, 4)]) mixes samples" in str(found)


def test_batch_norm_is_named_and_refused() -> None:
    found = report(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))
    assert found.findings[0].path == "1"
    assert found.findings[-1].kind == "refused"
    with pytest.raises(PrivacyError, match="get_compatible_module"):
        found.raise_if_bad()


def in_batch_contrast(model: nn.Module, batch: Any) -> Tensor:
    h = F.normalize(model(batch[0]), dim=-1)
    return F.cross_entropy(h @ h.T, torch.arange(len(h)))


LOSSES = {
    "class weights": lambda m, b: F.cross_entropy(m(b[0]), b[1], weight=torch.tensor([1.0, 2, 3]).double()),
    "one output against targets without a dimension": lambda m, b: (m(b[0])[:, :1] - b[1]).square().mean(),
    "in-batch contrast": in_batch_contrast,
    "a function of the mean": lambda m, b: classify(m, b).exp(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_mix_samples(name: str) -> None:
    batch = X, torch.tensor([0, 1, 2, 1, 0, 0])
    found = report(nn.Linear(4, 3), LOSSES[name], batch)
    assert found.findings[0].kind == "loss"
    assert "the loss mixes samples" in str(found)


def test_token_means_over_different_lengths() -> None:
    x, y = torch.randn(4, 5, 4), torch.randint(0, 3, (4, 5))
    y[0, 2:] = -100
    found = report(nn.Linear(4, 3), lambda m, b: F.cross_entropy(m(b[0]).mT, b[1]), (x, y))
    assert found.findings[0].kind == "loss"
    assert "mean over tokens" in str(found)


def test_the_wrong_reduction() -> None:
    found = report(nn.Linear(4, 3), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"))
    assert found.findings[0].kind == "loss_reduction"
    assert "Say loss_reduction='sum'" in str(found)
    assert report(
        nn.Linear(4, 3), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"), loss_reduction="sum"
    ).ok


class TimeMajor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def test_the_wrong_batch_dimension() -> None:
    x = torch.randn(4, 3, 4)
    found = report(TimeMajor(), lambda m, b: m(b).square().mean(), x)
    assert found.findings[0].kind == "batch_first"
    assert "batch_first=False" in str(found)
    assert report(TimeMajor(), lambda m, b: m(b).square().mean(), x, batch_first=False).ok


def make(engine: PrivacyEngine, model: nn.Module, **settings: Any) -> Any:
    return engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(X, Y), batch_size=3),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        **settings,
    )


def test_the_engines_check_leaves_everything_as_it_is() -> None:
    engine = PrivacyEngine()
    model, _, loader, *_ = make(engine, MODELS["mlp with dropout"]())
    next(iter(loader))
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert engine.check(classify, (X, Y)).ok
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert engine.accountant.steps == 0
    assert not engine.check(in_batch_contrast, (X, Y)).ok


def test_make_private_checks_before_it_touches_anything() -> None:
    engine, model = PrivacyEngine(), nn.Linear(4, 3)
    with pytest.raises(PrivacyError, match="the loss mixes samples"):
        make(engine, model, check=((X, Y), in_batch_contrast))
    assert "forward" not in model.__dict__
    make(engine, model, check=((X, Y), classify))


def test_misuse() -> None:
    with pytest.raises(ConfigurationError, match="holds no tensor"):
        report(nn.Linear(4, 3), classify, [])
    with pytest.raises(ConfigurationError, match="single sample"):
        report(nn.Linear(4, 3), classify, (X[:1], Y[:1]))
