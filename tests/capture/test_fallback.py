"""Modules without a rule run on one copy of their parameters for each sample."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tests.capture.compiled.private import attach
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tacit.errors import FallbackWarning, MixingError, NoRuleError, PrivacyError
from tacit.testing import check_exactness, private_gradients

pytestmark = pytest.mark.filterwarnings("ignore::tacit.errors.FallbackWarning")
SIZES = pytest.mark.parametrize(("B", "T", "d"), [(3, 5, 4), (4, 4, 4), (1, 3, 4), (2, 1, 4)])


def unruled(x: Tensor, w: Tensor) -> Tensor:
    """(..., d) and (k, d) → (..., k), by a function that has no rule."""
    return torch.kron(x.unsqueeze(-2), w.unsqueeze(0)).unflatten(-1, (x.shape[-1], w.shape[-1])).sum((-1, -2)).sin()


class Centers(nn.Module):
    """A layer without a rule."""

    def __init__(self, d: int = 4, k: int = 4, function: Callable[[Tensor, Tensor], Tensor] = unruled) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(k, d))
        self.function = function

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.function(x, self.centers) * scale


class Branching(Centers):
    """A branch on a value of the batch: torch.vmap cannot run it."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        out = super().forward(x, scale)
        return out * 2 if float(x.detach().square().sum()) >= 0 else out


class Doubled(torch.autograd.Function):
    """An autograd.Function of the old style: neither seen nor vectorized."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return 2 * x @ w.t()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return 2 * g @ w, 2 * g.flatten(0, -2).t() @ x.flatten(0, -2)


def around(layer: nn.Module, d: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(d, d), layer, nn.Linear(d, 3))


@SIZES
@pytest.mark.parametrize("layer", [Centers, Branching], ids=["vmap", "loop"])
def test_between_layers_that_have_rules(exact: Any, layer: Any, B: int, T: int, d: int) -> None:
    exact(around(layer(d)), torch.randn(B, T, d))
    exact(around(layer(d)), torch.randn(B, d))


@SIZES
def test_rows_folded_with_time(exact: Any, B: int, T: int, d: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = Centers(d), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x.reshape(-1, d)).view(*x.shape[:-1], -1))

    exact(Net(), torch.randn(B, T, d))


@SIZES
def test_batch_in_dimension_one(exact: Any, B: int, T: int, d: int) -> None:
    exact(around(Centers(d)), torch.randn(T, B, d), batch_first=False)


def test_it_is_said_once_and_by_name() -> None:
    torch.manual_seed(0)
    model, x = around(Centers()), torch.randn(3, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_exactness(model, lambda m, b: m(b).square().mean(), x)
    assert len(caught) == 1
    assert caught[0].category is FallbackWarning
    text = str(caught[0].message)
    assert "1 (Centers) runs under torch.vmap" in text
    assert "`kron` on a tensor computed from `1.centers`" in text


class Many(nn.Module):
    """Keyword arguments, two inputs, a constant, dicts in and out, a number for the batch."""

    class Out(NamedTuple):
        first: Tensor
        rest: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleDict({"inner": Centers()})
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, *, x: Tensor, more: dict[str, Tensor], mask: Tensor, factor: float) -> Out:
        h = unruled(x * self.scale, self.layer["inner"].centers) * factor + more["y"] * mask
        return self.Out(h, {"twice": (h * 2, "text"), "mask": mask, "loss": h.square().mean()})


@pytest.mark.parametrize("B", [1, 3, 4])
def test_structures_in_and_out(exact: Any, B: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.many, self.head = Many(), nn.Linear(4, 3)
            self.register_buffer("mask", torch.tensor([1.0, 0, 1, 0]))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            out = self.many(x=x, more={"y": y}, mask=self.mask, factor=0.5)
            assert out.rest["twice"][1] == "text"
            return self.head(out.first + out.rest["twice"][0] * out.rest["mask"])

    exact(Net(), torch.randn(B, 4), torch.randn(B, 4))


def test_a_mean_over_the_batch_is_one(exact: Any) -> None:
    many = Many()
    batch = torch.randn(4, 4, dtype=exact.dtype), torch.randn(4, 4, dtype=exact.dtype)
    mask = torch.ones(4)
    exact.loss(
        many.to(exact.dtype),
        lambda m, b, c: c(m(x=b[0], more={"y": b[1]}, mask=mask, factor=1.0).first, b[1]),
        batch,
        nn.MSELoss(),
    )
    report = check_exactness(many, lambda m, b: m(x=b[0], more={"y": b[1]}, mask=mask, factor=1.0).rest["loss"], batch)
    assert float(report.reference.norms.max()) > 0


@pytest.mark.parametrize("mode", ["auto", "functorch"])
def test_dropout_differs_between_samples(mode: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(64, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(unruled(x, self.w), 0.5)

    torch.manual_seed(0)
    seen: list[Tensor] = []

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        seen.append(model(x))
        return seen[-1].mean()

    private_gradients(Net(), loss, torch.ones(4, 1), max_grad_norm=1.0, grad_sample_mode=mode)
    assert len({tuple((row == 0).tolist()) for row in seen[-1]}) == 4


@pytest.mark.parametrize("B", [1, 3, 4])
def test_tied_repeated_and_outside(exact: Any, B: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.free = Centers(), nn.Linear(4, 4)
            self.free.weight = self.layer.centers

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.layer(self.layer(self.free(x))), self.layer.centers)

    exact(Net(), torch.randn(B, 4))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("layer", [Centers, Branching], ids=["vmap", "loop"])
@pytest.mark.parametrize("B", [1, 4])
def test_activation_checkpointing(exact: Any, layer: Any, B: int, reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.block, self.head = nn.Linear(4, 4), around(layer()), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.block, self.first(x), use_reentrant=reentrant))

    exact(Net(), torch.randn(B, 4))


def test_an_autograd_function_of_ones_own(exact: Any) -> None:
    exact(around(Centers(function=lambda x, w: Doubled.apply(x, w))), torch.randn(3, 4, 4))
    exact(around(Centers(function=lambda x, w: Doubled.apply(x, w * 2))), torch.randn(4, 4, 4))


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


def test_a_call_that_is_not_seen_between_layers(exact: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(Reversal.apply(self.one(x)))

    exact(Net(), torch.randn(3, 4))


@pytest.mark.parametrize("frozen", ["1.centers", "0.weight"])
def test_frozen_parameters(exact: Any, frozen: str) -> None:
    model = around(Centers())
    model.get_parameter(frozen).requires_grad_(False)
    exact(model, torch.randn(3, 4))


def test_a_trainable_tensor_among_the_arguments(exact: Any) -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return unruled(x, w)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.w = Inner(), nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x, self.w), self.w * 2)

    exact(Net(), torch.randn(3, 4))


class TestRefused:
    def check(self, model: nn.Module, x: Tensor, error: type[Exception], words: str, mode: str = "auto") -> None:
        with pytest.raises(error, match=words):
            private_gradients(model, lambda m, b: m(b).mean(), x, max_grad_norm=1.0, grad_sample_mode=mode)

    @pytest.mark.parametrize(
        ("function", "words"),
        [
            (lambda x, w: unruled(x - x.mean(0), w), "changes with the other samples"),
            (lambda x, w: unruled(x, w).cumsum(0), "changes with the other samples"),
            (lambda x, w: unruled(x, w) @ x.t(), "no batch dimension"),
            (lambda x, w: unruled(x, w).exp().sum().log(), "neither the mean nor the sum"),
            (lambda x, w: unruled(x[[1, 0, 2, 3]], w), "fails on a single sample"),
        ],
    )
    @pytest.mark.parametrize("mode", ["auto", "functorch"])
    def test_samples_that_are_mixed(self, function: Any, words: str, mode: str) -> None:
        torch.manual_seed(0)
        error = MixingError if mode == "functorch" else PrivacyError
        self.check(Centers(function=function), torch.randn(4, 4), error, f"(?s){words}", mode)

    @pytest.mark.parametrize("layer", [Centers, Branching], ids=["vmap", "loop"])
    @pytest.mark.parametrize("how", ["in place", "replaced"])
    def test_buffers_that_take_the_batch(self, layer: Any, how: str) -> None:
        class Net(layer):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("average", torch.zeros(4))

            def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
                if how == "in place":
                    self.average.add_(x.detach().mean(0))
                else:
                    self.average = self.average + x.detach().mean(0)
                return super().forward(x, scale)

        self.check(nn.Sequential(Net()), torch.randn(4, 4), MixingError, "average`.*without noise")

    @pytest.mark.parametrize("layer", [Centers, Branching], ids=["vmap", "loop"])
    def test_buffers_that_do_not(self, layer: Any) -> None:
        class Net(layer):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))
                self.register_buffer("other", torch.zeros(()))

            def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
                self.calls += 1
                self.other = self.other + 1
                return super().forward(x, scale)

        model = Net().double()
        counted: list[float] = []

        def loss(m: nn.Module, x: Tensor) -> Tensor:
            out = m(x).mean()
            counted[:] = [float(m.calls), float(m.other)]
            return out

        private_gradients(model, loss, torch.randn(4, 4).double(), max_grad_norm=1.0, grad_sample_mode="functorch")
        assert counted == [1.0, 1.0]

    @pytest.mark.parametrize("B", [1, 4])
    def test_buffers_that_tell_of_the_batch_in_python(self, B: int) -> None:
        """The same for every sample of this batch, and yet computed from it."""

        class Net(Branching):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("seen", torch.zeros(()))

            def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
                self.seen.fill_(float(x.detach().abs().sum() > 0))
                return super().forward(x, scale)

        self.check(Net(), torch.ones(B, 4), MixingError, "`seen`.*without noise")

    def test_a_forward_that_wrote_into_its_input_is_not_run_again(self) -> None:
        model = Centers(function=lambda x, w: unruled(x.mul_(2), w))
        self.check(model, torch.randn(4, 4), NoRuleError, "kron")

    @pytest.mark.parametrize("layer", [Centers, Branching], ids=["vmap", "loop"])
    def test_a_tensor_of_the_batch_that_comes_by_another_way(self, layer: Any) -> None:
        class Inner(layer):  # type: ignore[misc]
            context: Tensor

            def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
                return super().forward(x, scale) + self.context.sum()

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = Inner()

            def forward(self, x: Tensor) -> Tensor:
                self.inner.context = x * 2
                return self.inner(x)

        self.check(Net(), torch.randn(4, 4), PrivacyError, "neither among its arguments")

    def test_batch_statistics(self) -> None:
        model = Centers(function=lambda x, w: F.batch_norm(unruled(x, w), None, None, training=True))
        self.check(model, torch.randn(4, 4), MixingError, "batch normalization", "functorch")


def test_a_parameter_of_another_module_moves_the_fallback_outwards(exact: Any) -> None:
    class Inner(nn.Module):
        def __init__(self, other: list[nn.Module]) -> None:
            super().__init__()
            self.other = other
            self.centers = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return unruled(self.other[0](x), self.centers)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.inner = Inner([self.linear])

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    if exact.mode == "ghost":
        return  # copies of the list would share the module
    torch.manual_seed(0)
    model = Net().double()
    x = torch.randn(3, 4).double()
    norms, _ = private_gradients(model, lambda m, b: m(b).square().sum(), x, max_grad_norm=1.0, loss_reduction="sum")
    expected = []
    for row in x:
        model.zero_grad()
        model(row[None]).square().sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        expected.append(torch.cat([g.flatten() for g in grads]).norm())
    torch.testing.assert_close(norms, torch.stack(expected))


def test_outputs_that_change_with_a_flag(exact: Any) -> None:
    class Inner(Centers):
        def forward(self, x: Tensor, twice: bool = False) -> Any:  # type: ignore[override]
            out = super().forward(x)
            return (out, out.mean(-1)) if twice else out

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            first, mean = self.inner(self.inner(x), True)
            return first * mean[..., None]

    exact(Net(), torch.randn(3, 4))


class Strided(nn.Module):
    """Reads its matrix by strides; with a call without a rule, so that it runs apart."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return unruled(x, self.read(self.matrix))


@pytest.mark.parametrize("mode", ["auto", "functorch"])
@pytest.mark.parametrize(
    "read",
    [
        lambda w: w.as_strided((4, 4), (1, 1)),
        lambda w: torch.as_strided(w, (4, 4), (1, 4)).contiguous(),
        lambda w: w.t().as_strided((4, 4), (1, 1)),
        lambda w: torch.as_strided_copy(w, (4, 4), (1, 1)),
        lambda w: torch.ops.aten.as_strided(w, (4, 4), (1, 1)),
        lambda w: w.as_strided_scatter(w[0], (4,), (1,)),
    ],
)
def test_a_parameter_read_by_strides(read: Callable[[Tensor], Tensor], mode: str) -> None:
    """The copies are views of one memory: under torch.vmap its gradient would be divided among the samples."""
    torch.manual_seed(0)
    model, x = Strided(read).double(), torch.randn(5, 4, dtype=torch.float64)
    x[0] *= 100
    check_exactness(model, lambda m, b: m(b).square().sum(), x, loss_reduction="sum", grad_sample_mode=mode)


class Flagged(Centers):
    """Also puts out something without a batch dimension: the same for every sample, until a sample is large."""

    def forward(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x, scale), (x.detach().amax() > 10).float().expand(3)


@pytest.mark.parametrize("mode", ["auto", "functorch"])
def test_what_was_alike_for_all_samples_is_looked_at_in_every_batch(mode: str) -> None:
    torch.manual_seed(0)
    model, x = Flagged(), torch.randn(5, 4)
    attach(model, grad_sample_mode=mode)
    model(x)
    x[0] = 20.0
    with pytest.raises(PrivacyError, match="not the same for every sample"):
        model(x)
    model(torch.randn(5, 4))
