"""Shared by the whole suite: one way to hold a model to the loop over single samples."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.modes import MODES, mode_settings
from torch import Tensor, nn

from tacit.errors import MemoryBudgetError
from tacit.testing import ExactnessReport, check_exactness, private_gradients
from tacit.uses import DEFAULT_COSTS, TUNER, costs_of

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 6e-2}


class Scaled(nn.Module):
    """Multiplies the first input by a parameter of one sample's shape: its gradient shows the whole input gradient."""

    def __init__(self, inner: nn.Module, x: Tensor, batch_dim: int) -> None:
        super().__init__()
        shape = [1 if dim == batch_dim else size for dim, size in enumerate(x.shape)]
        self.scale = nn.Parameter(torch.rand(shape) + 0.5)
        self.inner = inner

    def forward(self, x: Tensor, *rest: Tensor) -> Any:
        return self.inner(x * self.scale, *rest)


class Op(nn.Module):
    """``function(*inputs, **parameters)`` as a module."""

    def __init__(self, function: Callable[..., Tensor], parameters: dict[str, Any]) -> None:
        super().__init__()
        self.function = function
        for name, shape in parameters.items():
            value = shape if isinstance(shape, Tensor) else torch.randn(shape)
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, **self._parameters)


def _rowwise_loss(output: Tensor, target: Tensor) -> Tensor:
    return (output.flatten(1).square().sum(1) - target).mean()


@dataclass(frozen=True)
class Exact:
    """Asserts that private gradients equal the loop's, in one mode and one precision."""

    mode: str
    dtype: torch.dtype

    def __call__(
        self, model: nn.Module, *inputs: Tensor, batch_first: bool = True, scaled: bool = True
    ) -> ExactnessReport:
        """The loss is the mean squared distance of the output from random targets."""
        batch_dim = 0 if batch_first else 1
        if scaled and inputs[0].is_floating_point():
            model = Scaled(model, inputs[0], batch_dim)
        model = model.to(self.dtype)
        inputs = tuple(self.cast(value) for value in inputs)
        with torch.no_grad():
            # in a copy of the inputs: some models write into them
            target = torch.randn_like(model(*(value.clone() for value in inputs)))
        return self.loss(
            model,
            lambda m, b, criterion: criterion(b[-1].transpose(0, batch_dim), m(*b[:-1]).transpose(0, batch_dim)),
            (*inputs, target),
            nn.MSELoss(),
            batch_first=batch_first,
        )

    def op(
        self, function: Callable[..., Tensor], *inputs: Tensor, batch_first: bool = True, **parameters: Any
    ) -> ExactnessReport:
        """Check a function of the batch and of parameters, given by shape or value."""
        return self(Op(function, parameters), *inputs, batch_first=batch_first)

    def loss(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        batch: Any,
        criterion: Callable[..., Any] | None = None,
        *,
        batch_first: bool = True,
    ) -> ExactnessReport:
        """Check a model with a loss of its own."""
        try:
            report = check_exactness(
                model,
                loss_fn,
                batch,
                **mode_settings(self.mode),
                criterion=criterion,
                batch_first=batch_first,
                tolerance=TOLERANCE[self.dtype],
            )
        except MemoryBudgetError as refused:
            pytest.skip(f"refused in words: {refused}")
        assert float(report.reference.norms.max()) > 0
        return report

    def private(
        self, model: nn.Module | Callable[..., Tensor], *inputs: Tensor, **parameters: Any
    ) -> dict[str, Tensor]:
        """Run a private backward alone, for what is refused or has no loop to compare with."""
        if not isinstance(model, nn.Module):
            model = Op(model, parameters)
        model, inputs = model.to(self.dtype), tuple(self.cast(value) for value in inputs)
        _, sums = private_gradients(
            model,
            lambda m, b, criterion: criterion(m(*b), torch.zeros(len(b[0]), dtype=self.dtype)),
            inputs,
            max_grad_norm=1.0,
            **mode_settings(self.mode),
            criterion=_rowwise_loss,
        )
        return sums

    def cast(self, value: Tensor) -> Tensor:
        """Change the type of a floating-point tensor; its strides stay."""
        return value.to(self.dtype) if value.is_floating_point() else value


@pytest.fixture(autouse=True, scope="session")
def _same_rates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test depends on how fast the machine is, or writes into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("tacit.uses.rates.measured", lambda *_: DEFAULT_COSTS)
        for dtype in (torch.float32, torch.float64):  # before a test's process of its own measures and keeps others
            costs_of(torch.device("cpu"), dtype)
        yield


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a model is: on a GPU, if there is one, with TF32 allowed for its products. No clip may heed that."""
    places: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv) if request.param == "cuda" else ()
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "tf32"
    yield request.param
    for place, value in zip(places, before, strict=True):
        place.fp32_precision = value


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strategies", default="", help="force these, such as gram,pixels, wherever they are possible")
    parser.addoption("--grid", action="store_true", help="all cells of the exactness grid over several processes")


@pytest.fixture(autouse=True, scope="session")
def _forced(request: pytest.FixtureRequest) -> Iterator[None]:
    """Choices between forms of a use change nothing beyond rounding: `make strategies` runs all exactness tests so."""
    names = request.config.getoption("--strategies")
    with TUNER.forced(*names.split(",")) if names else contextlib.nullcontext():
        yield


def _named(mode: str, dtype: torch.dtype) -> Any:
    return pytest.param((mode, dtype), id=f"{mode}-{str(dtype).removeprefix('torch.')}")


DOUBLE = [_named(mode, torch.float64) for mode in MODES]
SINGLE = [_named(mode, torch.float32) for mode in ("auto", "hooks", "ghost")]


@pytest.fixture(params=DOUBLE)
def exact(request: pytest.FixtureRequest) -> Exact:
    """Every mode, in float64."""
    torch.manual_seed(0)
    return Exact(*request.param)


@pytest.fixture(params=[*DOUBLE, *SINGLE, _named("auto", torch.bfloat16)])
def exact_any(request: pytest.FixtureRequest) -> Exact:
    """Every mode in float64, some in float32, and bfloat16 with a loose tolerance."""
    torch.manual_seed(0)
    return Exact(*request.param)


@pytest.fixture
def exact_auto() -> Exact:
    """The default mode in float64, for what has nothing to do with modes."""
    torch.manual_seed(0)
    return Exact("auto", torch.float64)
