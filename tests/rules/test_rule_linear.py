from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tacit.errors import NoRuleError, PrivacyError
from tacit.rules.linear import outer_use
from tacit.uses import TUNER, Asked, Dense, Outer, Room

SIZES = [(3, 4, 5), (4, 4, 4), (1, 3, 2), (3, 1, 4)]
BTD = pytest.mark.parametrize(("B", "T", "d"), SIZES)


@BTD
@pytest.mark.parametrize("extra", [(), (2,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_on_inputs_of_any_rank(
    exact_any: Any, B: int, T: int, d: int, extra: tuple[int, ...], bias: bool
) -> None:
    exact_any(nn.Linear(d, d, bias=bias), torch.randn(B, *extra, T, d))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("B", [1, 4])
def test_linear_on_plain_rows(exact_any: Any, B: int, bias: bool) -> None:
    exact_any(nn.Linear(4, 3, bias=bias), torch.randn(B, 4))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("size", [(3, 4), (3, 5, 4), (3, 0, 4)], ids=str)
def test_linear_without_features_or_positions(exact_any: Any, size: tuple[int, ...]) -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide, self.shift = nn.Linear(4, 0), nn.Linear(0, 2), nn.Parameter(torch.randn(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.wide(self.narrow(x))
            return (y if y.dim() == 2 else y.sum(1)) + self.shift

    exact_any(Narrow(), torch.randn(size))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_linear_with_a_frozen_half(exact: Any, frozen: str) -> None:
    layer = nn.Linear(4, 3)
    getattr(layer, frozen).requires_grad_(False)
    exact(layer, torch.randn(3, 4, 4))
    exact(layer, torch.randn(3, 4, 4), scaled=False)


@pytest.mark.choice
def test_linear_wide_enough_for_gram_matrices(exact_any: Any) -> None:
    layer, x = nn.Linear(96, 80), torch.randn(3, 2, 96)
    assert isinstance(outer_use(x, torch.randn(3, 2, 80), layer.weight.shape, room=Room()), Outer)
    exact_any(layer, x)


@pytest.mark.choice
def test_linear_long_enough_for_dense_gradients(exact_any: Any) -> None:
    layer, x = nn.Linear(3, 2), torch.randn(3, 40, 3)
    assert isinstance(outer_use(x, torch.randn(3, 40, 2), layer.weight.shape, room=Room()), Dense)
    exact_any(layer, x)


@pytest.mark.parametrize("form", ["gram", "stored"])
@pytest.mark.parametrize("asked", [Asked.NORM, Asked.SUM])
@pytest.mark.parametrize("measured", [False, True])
def test_both_of_two_passes_have_the_same_factors(form: str, asked: Asked, measured: bool) -> None:
    a, g = torch.randn(3, 4, 2), torch.randn(3, 4, 5)
    room = Room(measured=measured)
    room.asked = asked
    with TUNER.forced(form):
        use = outer_use(a, g, torch.Size((5, 2)), room=room)
    assert isinstance(use, Outer)
    assert use.parts[0] is a
    assert use.parts[1] is g
    assert use.formed is (form == "stored" and asked is Asked.NORM)


@BTD
@pytest.mark.parametrize("form", ["gram", "stored"])
def test_two_passes_in_any_form(exact_any: Any, B: int, T: int, d: int, form: str) -> None:
    layer = nn.Linear(d, d)
    with TUNER.forced(form):
        exact_any(layer, torch.randn(B, T, d))
        exact_any(nn.Sequential(layer, nn.Tanh(), layer), torch.randn(B, T, d))


def test_the_strategy_for_one_position_is_never_dense() -> None:
    assert isinstance(outer_use(torch.randn(3, 1, 2), torch.randn(3, 1, 2), torch.Size((2, 2)), room=Room()), Outer)


@pytest.mark.parametrize(
    "strided",
    [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.cat([x, x], 2)[..., ::2],
        lambda x: x[:, :1].expand_as(x),
        lambda x: x[:, :, :1].expand_as(x),
        lambda x: x.repeat_interleave(2, 1)[:, 1::2],
    ],
    ids=["transposed", "strided", "expanded-positions", "expanded-features", "sliced"],
)
def test_linear_on_strided_and_expanded_inputs(exact_any: Any, strided: Any) -> None:
    exact_any.op(lambda x, w, b: F.linear(strided(x), w, b), torch.randn(3, 4, 4), w=(5, 4), b=(5,))


def test_linear_with_a_strided_weight(exact: Any) -> None:
    exact.op(F.linear, torch.randn(3, 4, 4), weight=torch.randn(4, 5).t())
    exact.op(lambda x, w: F.linear(x, w[::2]), torch.randn(3, 4, 4), w=(6, 4))


@BTD
def test_hugging_face_conv1d(exact_any: Any, B: int, T: int, d: int) -> None:
    """addmm with the batch flattened into rows."""
    exact_any.op(
        lambda x, w, b: torch.addmm(b, x.view(-1, x.size(-1)), w).view(*x.shape[:-1], -1),
        torch.randn(B, T, d),
        w=(d, 3),
        b=(3,),
    )


@pytest.mark.parametrize(("beta", "alpha"), [(1, 1), (0.5, 1), (1, 2.0), (0, 1), (0.5, 2.0)])
@pytest.mark.parametrize("bias", [(4,), (1, 4)])
def test_addmm_with_its_factors(exact: Any, beta: float, alpha: float, bias: tuple[int, ...]) -> None:
    exact.op(lambda x, w, b: torch.addmm(b, x, w, beta=beta, alpha=alpha), torch.randn(4, 4), w=(4, 4), b=bias)


def test_a_bias_of_one_element(exact: Any) -> None:
    exact.op(lambda x, w, b: torch.addmm(b, x, w), torch.randn(3, 4), w=(4, 5), b=(1,))


def test_addmm_method_with_the_batch_as_input(exact: Any) -> None:
    exact.op(lambda x, w: x.addmm(x, w), torch.randn(4, 4), w=(4, 4))


PRODUCTS = {
    "x @ w": (lambda x, w: x @ w, lambda d: (d, 3)),
    "matmul(x, w)": (lambda x, w: torch.matmul(x, w), lambda d: (d, d)),
    "x.matmul(w.T)": (lambda x, w: x.matmul(w.T), lambda d: (3, d)),
    "x @ w.t()": (lambda x, w: x @ w.t(), lambda d: (d, d)),
    "x @ w.mT": (lambda x, w: x @ w.mT, lambda d: (d, d)),
    "x @ w.transpose(0, 1)": (lambda x, w: x @ w.transpose(0, 1), lambda d: (d, d)),
    "x @ w.transpose(0, 0)": (lambda x, w: x @ w.transpose(0, 0), lambda d: (d, d)),
    "x @ w.T.T": (lambda x, w: x @ w.T.T, lambda d: (d, d)),
    "x @ vector": (lambda x, w: x @ w, lambda d: (d,)),
    "x @ batched w": (lambda x, w: x @ w, lambda d: (1, d, 3)),
    "expanded rmatmul": (lambda x, w: x.__rmatmul__(w), lambda d: (3, d)),
    "x.mT w left": (lambda x, w: w @ x.mT, lambda d: (3, d)),
}


@BTD
@pytest.mark.parametrize("name", PRODUCTS)
def test_matrix_products(exact_any: Any, B: int, T: int, d: int, name: str) -> None:
    function, shape = PRODUCTS[name]
    x = torch.randn(B, T, d)
    if name == "expanded rmatmul":
        x = torch.randn(B, d, T)
    exact_any.op(function, x, w=shape(d))


@BTD
def test_products_with_a_weight_for_each_head(exact: Any, B: int, T: int, d: int) -> None:
    exact.op(lambda x, w: x @ w, torch.randn(B, T, 2, d), w=(T, d, 3))
    exact.op(lambda x, w: w @ x, torch.randn(B, T, d, 2), w=(T, 3, d))
    exact.op(lambda x, w: torch.matmul(x.unsqueeze(2), w).squeeze(2), torch.randn(B, T, d), w=(T, d, d))


@BTD
def test_weight_on_the_left_mixes_positions(exact: Any, B: int, T: int, d: int) -> None:
    exact.op(lambda x, w: w @ x, torch.randn(B, T, d), w=(T, T))
    exact.op(lambda x, w: (w @ x.flatten(1).t()).t(), torch.randn(B, T, d), w=(3, T * d))


def test_two_dimensional_functions(exact: Any) -> None:
    exact.op(lambda x, w: torch.mm(x, w), torch.randn(4, 4), w=(4, 4))
    exact.op(lambda x, w: x.mm(w), torch.randn(4, 3), w=(3, 5))
    exact.op(lambda x, w: torch.mv(x, w), torch.randn(4, 4), w=(4,))
    exact.op(lambda x, w: x.mv(w).unsqueeze(1), torch.randn(4, 3), w=(3,))


def test_bmm_with_an_expanded_weight(exact: Any) -> None:
    exact.op(lambda x, w: torch.bmm(x, w.expand(len(x), 4, 4)), torch.randn(4, 4, 4), w=(1, 4, 4))
    exact.op(lambda x, w: torch.bmm(x, w.expand(x.shape[0], -1, -1)), torch.randn(3, 4, 5), w=(1, 5, 2))


@pytest.mark.parametrize(("B", "T", "d"), [(3, 4, 5), (4, 4, 4)])
def test_linear_and_products_with_the_batch_in_dimension_one(exact_any: Any, B: int, T: int, d: int) -> None:
    exact_any(nn.Linear(d, d), torch.randn(T, B, d), batch_first=False)
    exact_any.op(lambda x, w: x @ w, torch.randn(T, B, d), w=(d, d), batch_first=False)
    exact_any.op(lambda x, w: (x.reshape(-1, d) @ w).view(x.shape), torch.randn(T, B, d), w=(d, d), batch_first=False)


def test_bmm_whose_batch_is_the_heads(exact: Any) -> None:
    """A weight for each head, with (heads, B, d) activations."""
    exact.op(lambda x, w: torch.bmm(x.transpose(0, 1), w).transpose(0, 1), torch.randn(4, 4, 4), w=(4, 4, 4))
    exact.op(lambda x, w: torch.bmm(x.transpose(0, 1), w).transpose(0, 1), torch.randn(3, 4, 5), w=(4, 5, 2))


@pytest.mark.parametrize(
    ("function", "x", "w"),
    [
        (lambda x, w: w @ x.flatten(), (4, 4), (4, 16)),
        (lambda x, w: F.linear(x.mean(0), w), (4, 4), (4, 4)),
        (lambda x, w: F.linear(x.t(), w), (4, 4), (4, 4)),
        (lambda x, w: x.t() @ w, (4, 4), (4, 4)),
        (lambda x, w: w @ x, (4, 4), (4, 4)),
        (lambda x, w: w @ x.transpose(0, 1), (4, 4, 4), (4, 4)),
    ],
    ids=["flattened", "averaged", "transposed", "contracted", "contracted-left", "contracted-left-3d"],
)
def test_products_that_mix_samples_are_refused(exact_auto: Any, function: Any, x: Any, w: Any) -> None:
    with pytest.raises(PrivacyError, match="linear|matmul|einsum"):
        exact_auto.private(lambda x, w: function(x, w).sum() + x.flatten(1), torch.randn(x), w=w)


def test_a_batch_in_weight_and_input_is_refused_by_name(exact_auto: Any) -> None:
    with pytest.raises(NoRuleError, match=r"(?s)weight and bias come from the batch.*unclipped.*Freeze"):
        exact_auto.private(lambda x, b: F.linear(x, x, b), torch.randn(4, 4), b=(4,))
