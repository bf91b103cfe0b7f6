"""In low precision, one record more must not change how the gradients of all others are rounded."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.modes import MODES, mode_settings
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.errors import PrivacyError
from tacit.mechanisms.rounding import ROUNDING
from tacit.testing import private_gradients

WIDTH = 24


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10))


class InItsOwnAutocast(nn.Module):
    """Low precision that is not on outside, and a frozen part in bfloat16 between float32 ones."""

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
        return 2.0**10 * losses.mean()  # what float16 cannot hold well, it rounds by more: a GradScaler keeps it away


def outside(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    x, labels, weights = batch
    return (F.cross_entropy(model(x), labels, reduction="none") * weights).mean()


def inside(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return model(*batch)  # type: ignore[no-any-return]


def moved(
    make: Callable[[], nn.Module],
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor],
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = torch.bfloat16,
    samples: int = 65,
    **settings: object,
) -> float:
    """What a record without a gradient of its own changes about the sum of the others, in clipping bounds."""

    def in_precision(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            return loss(model, batch)

    torch.manual_seed(1)
    batch = torch.randn(samples, 20, dtype=dtype), torch.zeros(samples, dtype=torch.int64), torch.ones(samples)
    batch[2][0] = 0
    found = []
    for first in (0, 1):
        model = make().to(dtype) if dtype != torch.float32 else make()
        part = tuple(each[first:] for each in batch)
        _, gradients = private_gradients(model, in_precision, part, max_grad_norm=1.0, **settings)  # type: ignore[arg-type]
        found.append(torch.cat([each.double().flatten() for each in gradients.values()]))
    assert float(found[0].norm()) > 1
    return float((found[0] - found[1]).norm())


@pytest.mark.parametrize("mode", [*MODES, "functorch"])
def test_one_record_more_moves_no_others_under_autocast(mode: str) -> None:
    assert moved(mlp, outside, **mode_settings(mode)) < ROUNDING / 8  # without rescaling it is 1e-2 and more


@pytest.mark.parametrize("mode", ["auto", "bounded", "per_layer"])
def test_nor_with_parameters_in_low_precision(mode: str) -> None:
    assert moved(mlp, outside, dtype=torch.bfloat16, autocast=None, **mode_settings(mode)) < ROUNDING / 8


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_nor_where_only_a_part_is_in_low_precision(autocast: torch.dtype | None) -> None:
    assert moved(InItsOwnAutocast, outside, autocast=autocast) < ROUNDING / 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nor_where_the_loss_is_inside_the_model(dtype: torch.dtype) -> None:
    assert moved(LossInside, inside, autocast=dtype) < ROUNDING / 8


def test_nor_when_compiled() -> None:
    assert moved(lambda: torch.compile(mlp(), backend="aot_eager"), outside) < ROUNDING / 8


def private(reduction: str = "mean", samples: int = 5) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(2)
    x, labels = torch.randn(samples, 20), torch.randint(10, (samples,))
    model = mlp()
    model, _, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(x, labels), batch_size=samples),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        loss_reduction=reduction,
    )
    next(iter(loader))
    return model, x, labels


def test_outputs_are_in_float32_where_losses_are_means() -> None:
    for reduction, dtype in (("mean", torch.float32), ("sum", torch.bfloat16)):
        model, x, _ = private(reduction)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(x).dtype == dtype
            model.eval()
            assert model(x).dtype == torch.bfloat16
            model.train()


def test_outputs_may_be_changed_in_place() -> None:
    model, x, labels = private(samples=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
        out.mul_(2.0)
        F.cross_entropy(out, labels).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_gradient_of_an_input_is_the_users_and_of_its_own_scale() -> None:
    model, x, labels = private(samples=5)
    plain = mlp()
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.warns(UserWarning, match="cannot be rescaled"):
        F.cross_entropy(model(ours), labels).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        F.cross_entropy(plain(theirs), labels).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-4)


def test_of_two_forwards_the_second_cannot_want_it() -> None:
    model, x, _ = private(samples=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        with pytest.raises(PrivacyError, match="another scale"):
            model(x.clone().requires_grad_())


def test_float32_is_left_alone() -> None:
    model, x, labels = private()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = model(x.clone().requires_grad_())
        F.cross_entropy(out, labels).backward()
    assert type(out.grad_fn).__name__ != "RescaledBackward"
