"""Rules for functions that are not torch's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tacit
from tacit.errors import ConfigurationError, FallbackWarning
from tacit.rules import Contact


class Product(torch.autograd.Function):
    """What the engine cannot look into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g * w, (g * x).sum_to_size(w.shape)


@tacit.visible
def product(x: Tensor, w: Tensor) -> Tensor:
    """The product of x and w."""
    return Product.apply(x, w)


@tacit.visible
def without_a_rule(x: Tensor, w: Tensor) -> Tensor:
    return Product.apply(x, w)


@tacit.register_rule(product)
def _product(contact: Contact, x: Tensor, w: Tensor) -> Tensor:
    return contact.call(torch.mul, x, w)


@torch.library.custom_op("tacit_tests::scaled", mutates_args=())
def scaled(x: Tensor, w: Tensor) -> Tensor:
    return x * w


scaled.register_autograd(
    lambda ctx, g: (g * ctx.saved[1], (g * ctx.saved[0]).sum(0)),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "saved", inputs),
)


@tacit.register_rule(scaled)
def _scaled(contact: Contact, x: Tensor, w: Tensor) -> Tensor:
    return contact.call(torch.mul, x, w)


@pytest.mark.parametrize(
    "function", [product, lambda x, w: scaled(x, w), torch.ops.tacit_tests.scaled], ids=["python", "op", "packet"]
)
@pytest.mark.parametrize("B", [1, 3, 4])
def test_functions_with_a_rule_of_their_own(exact: Any, function: Any, B: int) -> None:
    exact.op(function, torch.randn(B, 4), w=(4,))


def test_a_visible_function_without_a_rule_runs_apart(exact: Any) -> None:
    with pytest.warns(FallbackWarning, match=r"`without_a_rule` on `inner\.w` \(4,\)"):
        exact.op(without_a_rule, torch.randn(3, 4), w=(4,))


def test_a_visible_function_of_parameters_alone_is_a_derived_parameter(exact: Any) -> None:
    exact.op(lambda x, v, w: x * without_a_rule(v, w), torch.randn(3, 4), v=(4,), w=(4,))


def test_visible_functions_stay_what_they_were() -> None:
    assert product.__name__ == "product"
    assert product.__doc__ == "The product of x and w."
    x = torch.randn(3)
    assert torch.equal(product(x, w=x), x * x)
    assert torch.equal(nn.Sequential()(product(x, x)), x * x)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x, r"<lambda> cannot be seen.*@tacit\.visible"),
        (torch.nn.functional.linear, "has a rule already"),
        ("linear", "'linear' is a str, not a function"),
    ],
)
def test_what_cannot_have_a_rule_is_refused(function: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        tacit.register_rule(function)(lambda contact: None)
