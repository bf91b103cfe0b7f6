"""In low precision, one record more changes how the gradients of all others are rounded, where a loss is a mean."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.modes import MODES, mode_settings
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.mechanisms import add_gaussian_noise
from tacit.testing import private_gradients
from tacit.uneven import paid, paid_for_means

WIDTH = 24


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10))


class PartInBfloat16(nn.Module):
    """A frozen part in bfloat16 between float32 ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(20, WIDTH), nn.Linear(WIDTH, 10)
        self.frozen = nn.Linear(WIDTH, WIDTH).bfloat16().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.frozen(torch.tanh(self.first(x)).bfloat16()).float()
        return self.last(inner)  # type: ignore[no-any-return]


class LossInside(nn.Module):
    """Puts its own loss out, as models of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        losses = F.cross_entropy(self.inner(x).float(), labels, reduction="none") * weights
        return losses.mean()


def outside(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    x, labels, weights = batch
    return (F.cross_entropy(model(x), labels, reduction="none") * weights).mean()


def summed(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    x, labels, weights = batch
    return (F.cross_entropy(model(x), labels, reduction="none") * weights).sum()


def inside(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return model(*batch)  # type: ignore[no-any-return]


def moved(
    make: Callable[[], nn.Module],
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor],
    autocast: torch.dtype | None = torch.bfloat16,
    samples: int = 65,
    **settings: object,
) -> float:
    """What a record without a gradient of its own changes about the sum of the others, in clipping bounds."""

    def in_precision(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            return loss(model, batch)

    torch.manual_seed(1)
    batch = torch.randn(samples, 20), torch.zeros(samples, dtype=torch.int64), torch.ones(samples)
    batch[2][0] = 0
    found = []
    for first in (0, 1):
        model = make()
        part = tuple(each[first:] for each in batch)
        _, gradients = private_gradients(model, in_precision, part, max_grad_norm=1.0, **settings)  # type: ignore[arg-type]
        found.append(torch.cat([each.double().flatten() for each in gradients.values()]))
    assert float(found[0].norm()) > 1
    return float((found[0] - found[1]).norm())


class AutocastInside(nn.Module):
    """Low precision that neither the outside nor the outputs tell of."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x).float()  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:the model computes in low precision")
@pytest.mark.parametrize("mode", [*MODES, "functorch"])
@pytest.mark.parametrize("samples", [17, 65])
def test_what_is_paid_is_more_than_one_record_moves_the_others_by(mode: str, samples: int) -> None:
    by_mean = moved(mlp, outside, samples=samples, **mode_settings(mode))
    assert 1e-3 < by_mean < paid([torch.bfloat16], samples, apart=mode == "functorch")
    by_sum = moved(mlp, summed, samples=samples, loss_reduction="sum", **mode_settings(mode))
    assert by_sum < 2e-6


def run(model: nn.Module, told: list[float], monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[Any, ...]:
    """A private run, of which ``told`` hears the deviations of its noise: engine, model, optimizer and loader."""

    def add(totals: Any, *, std: float, **rest: Any) -> Any:
        told.append(std)
        return add_gaussian_noise(totals, std=std, **rest)

    monkeypatch.setattr("tacit.step.add_gaussian_noise", add)
    torch.manual_seed(2)
    data = TensorDataset(torch.randn(8, 20), torch.zeros(8, dtype=torch.int64), torch.ones(8))
    engine = PrivacyEngine()
    trained = [p for p in model.parameters() if p.requires_grad]
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(trained, lr=0.1),
        data_loader=DataLoader(data, batch_size=8),
        poisson_sampling=False,
        **{"noise_multiplier": 2.0, "max_grad_norm": 0.5} | settings,
    )
    return engine, model, optimizer, loader


LOW: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], bool, dict[str, Any]]] = {
    "autocast": (mlp, outside, True, {}),
    "parameters": (lambda: mlp().bfloat16(), outside, False, {}),
    "a frozen part": (PartInBfloat16, outside, False, {}),
    "autocast inside": (AutocastInside, outside, False, {}),
    "run on single samples": (AutocastInside, outside, False, {"grad_sample_mode": "functorch"}),
    "frozen, on single samples": (PartInBfloat16, outside, False, {"grad_sample_mode": "functorch"}),
    "the loss inside": (LossInside, inside, True, {}),
    "compiled": (lambda: torch.compile(AutocastInside(), backend="aot_eager"), outside, False, {}),
}


@pytest.mark.parametrize("name", LOW)
def test_low_precision_is_seen_wherever_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, loss, autocast, settings = LOW[name]
    told: list[float] = []
    _, model, optimizer, loader = run(make(), told, monkeypatch, **settings)
    batch = next(iter(loader))
    if name == "parameters":
        batch = [batch[0].bfloat16(), *batch[1:]]
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
        pytest.warns(UserWarning, match="low precision"),
    ):
        loss(model, batch).backward()
    optimizer.step()
    part = paid([torch.bfloat16], 8, apart=bool(settings))
    assert told == [pytest.approx(2.0 * 0.5 * (1 + part))]


@pytest.mark.parametrize("name", ["float32", "sum", "no records"])
def test_noise_is_larger_for_a_mean_in_low_precision_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    settings = {"loss_reduction": "sum"} if name == "sum" else {}
    engine, model, optimizer, loader = run(mlp(), told, monkeypatch, **settings)
    batch = next(iter(loader))
    low = torch.autocast("cpu", dtype=torch.bfloat16, enabled=name != "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if name == "no records":
            with engine.synthetic(), low:
                outside(model, batch).backward()
            outside(model, batch).backward()
        else:
            with low:
                outside(model, batch).backward()
        optimizer.step()
    assert told == [1.0]


class MeanInLowPrecision(nn.Module):
    """A loss that is in bfloat16 itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp().bfloat16()

    def forward(self, x: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return (F.cross_entropy(self.inner(x.bfloat16()), labels, reduction="none") * weights.bfloat16()).mean()


@pytest.mark.filterwarnings("ignore:the model computes in low precision")
@pytest.mark.parametrize("samples", [129, 514])
def test_a_mean_in_low_precision_moves_all_alike_and_is_paid_for(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = moved(MeanInLowPrecision, inside, autocast=None, samples=samples)
    assert 0.05 < found < paid_for_means([torch.bfloat16], samples)
    told: list[float] = []
    _, model, optimizer, loader = run(MeanInLowPrecision(), told, monkeypatch)
    inside(model, next(iter(loader))).backward()
    optimizer.step()
    assert told == [pytest.approx(1 + 2.0**-7 * 8)]


def test_less_is_paid_where_less_is_rounded() -> None:
    assert paid([], 100) == 0
    assert paid([torch.float16], 100) == pytest.approx(paid([torch.bfloat16, torch.float16], 100) / 8)
    for records, found in {33: 0.0097, 129: 0.02, 257: 0.03, 1025: 0.047, 4097: 0.053}.items():
        assert found * 1.3 < paid([torch.bfloat16], records)
    for records, found in {520: 1.77, 1027: 2.13, 1800: 3.51}.items():
        assert found * 1.1 < paid_for_means([torch.bfloat16], records)


@pytest.mark.filterwarnings("ignore:the model computes in low precision", "ignore:step")
def test_noise_stays_larger_for_batches_without_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it smaller, it would tell of them."""
    told: list[float] = []
    _, model, optimizer, loader = run(mlp(), told, monkeypatch)
    for step in range(3):
        batch = next(iter(loader))
        optimizer.zero_grad()
        if step == 0:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                outside(model, batch).backward()
        optimizer.step()
    assert told == [pytest.approx(1 + paid([torch.bfloat16], 8))] * 3
