from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.errors import NoRuleError, PrivacyError

SIZES = pytest.mark.parametrize(("B", "T", "d"), [(3, 4, 5), (4, 4, 4), (1, 3, 4), (3, 1, 4)])


def _positive(x: Tensor) -> Tensor:
    return x.abs() + 0.5


CALLS = {
    "x * p": lambda x, p: x * p,
    "p * x": lambda x, p: p * x,
    "x + p": lambda x, p: x + p,
    "p + x": lambda x, p: p + x,
    "x - p": lambda x, p: x - p,
    "p - x": lambda x, p: p - x,
    "x / p": lambda x, p: x / _positive(p),
    "x / leaf": lambda x, p: x / p,
    "p / x": lambda x, p: p / _positive(x),
    "x ** p": lambda x, p: _positive(x) ** p,
    "p ** x": lambda x, p: _positive(p) ** x,
    "pow": lambda x, p: torch.pow(_positive(x), p),
    "maximum": lambda x, p: torch.maximum(x, p),
    "minimum": lambda x, p: torch.minimum(p, x),
    "fmax": lambda x, p: torch.fmax(x, p),
    "where": lambda x, p: torch.where(x > 0, x, p),
    "x.where": lambda x, p: x.where(x > 0, p),
    "where both": lambda x, p: torch.where(x > 0, p * 2, p),
    "lerp": lambda x, p: torch.lerp(x, x.tanh(), p),
    "lerp end": lambda x, p: torch.lerp(x, p.expand(x.shape[1:]), 0.3),
    "addcmul": lambda x, p: torch.addcmul(x, x, p, value=0.5),
    "addcmul start": lambda x, p: torch.addcmul(p, x, x),
    "addcdiv": lambda x, p: torch.addcdiv(x, p, _positive(x)),
    "hypot": lambda x, p: torch.hypot(x, p),
    "atan2": lambda x, p: torch.atan2(x, p),
    "logaddexp": lambda x, p: torch.logaddexp(x, p),
    "torch.add alpha": lambda x, p: torch.add(x, p, alpha=2),
    "torch.sub alpha": lambda x, p: torch.sub(p, x, alpha=2),
    "x.sub": lambda x, p: x.sub(p, alpha=3),
    "rsub": lambda x, p: torch.rsub(x, p),
    "keyword": lambda x, p: torch.mul(input=x, other=p),
    "clamp": lambda x, p: x.clamp(min=p),
    "clamp by torch": lambda x, p: torch.clamp(x, max=p),
    "comparison": lambda x, p: x * (x > p) + p * x,
    "x.add_": lambda x, p: (x * 1).add_(p),
    "x.mul_": lambda x, p: (x * 1).mul_(p).tanh(),
    "x += p": lambda x, p: _augment(x, p, "+"),
    "x *= p": lambda x, p: _augment(x, p, "*"),
    "x -= p": lambda x, p: _augment(x, p, "-"),
    "x /= p": lambda x, p: _augment(x, p, "/"),
    "leaf twice": lambda x, p: x * p + p,
    "square of p": lambda x, p: x * p * p,
    "detached branch": lambda x, p: x * p.detach() + x.detach() * p,
}
SHAPES = {
    "scalar": lambda T, d: (),
    "one": lambda T, d: (1,),
    "features": lambda T, d: (d,),
    "positions": lambda T, d: (T, 1),
    "both": lambda T, d: (T, d),
    "leading one": lambda T, d: (1, T, d),
    "middle": lambda T, d: (1, T, 1),
}


def _augment(x: Tensor, p: Tensor, sign: str) -> Tensor:
    y = x * 1
    if sign == "+":
        y += p
    elif sign == "*":
        y *= p
    elif sign == "-":
        y -= p
    else:
        y /= p
    return y.tanh() if sign != "/" else y


@pytest.mark.parametrize("shape", ["scalar", "features", "positions", "both", "leading one"])
@pytest.mark.parametrize("name", CALLS)
def test_every_call_with_every_shape_when_all_sizes_coincide(exact_auto: Any, name: str, shape: str) -> None:
    if name == "lerp end" and shape == "leading one":
        pytest.skip("the call itself does not fit this shape")
    exact_auto.op(CALLS[name], torch.randn(4, 4, 4), p=SHAPES[shape](4, 4))


@pytest.mark.parametrize("name", CALLS)
def test_every_call_in_every_mode(exact: Any, name: str) -> None:
    exact.op(CALLS[name], torch.randn(3, 4, 5), p=(5,))


@SIZES
@pytest.mark.parametrize("name", ["x * p", "p - x", "x / p", "x += p"])
@pytest.mark.parametrize("shape", SHAPES)
def test_common_calls_in_lower_precision(exact_any: Any, B: int, T: int, d: int, name: str, shape: str) -> None:
    exact_any.op(CALLS[name], torch.randn(B, T, d), p=_away_from_zero(SHAPES[shape](T, d)))


def _away_from_zero(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape) + 0.5


def test_parameters_of_higher_rank_than_the_batch(exact: Any) -> None:
    exact.op(lambda x, p: x[:, None] * p, torch.randn(4, 4), p=(4, 4))
    exact.op(lambda x, p: (x * p).transpose(0, 1), torch.randn(4, 4), p=(3, 1, 4))
    exact.op(lambda x, p: (x.unsqueeze(0) + p).movedim(1, 0), torch.randn(4, 4, 4), p=(2, 1, 4, 4))


def test_parameters_broadcast_in_the_middle(exact: Any) -> None:
    exact.op(lambda x, p: x * p, torch.randn(4, 4, 4, 4), p=(4, 1, 4))
    exact.op(lambda x, p: x + p, torch.randn(3, 2, 4, 5), p=(2, 1, 5))
    exact.op(lambda x, p, q: x[:, :, None] * p + q, torch.randn(4, 4, 4), p=(4, 1, 4), q=(4, 4, 1))


def test_several_parameters_in_one_call(exact: Any) -> None:
    exact.op(lambda x, p, q: torch.addcmul(p, x, q), torch.randn(4, 4), p=(4,), q=())
    exact.op(lambda x, p, q: torch.where(x > 0, p, q), torch.randn(4, 4), p=(4,), q=(1,))
    exact.op(lambda x, p, q: torch.lerp(p, q, x), torch.randn(4, 4, 4), p=(4, 1), q=(4,))


@pytest.mark.parametrize(("B", "T"), [(3, 4), (4, 4)])
def test_batch_in_dimension_one(exact: Any, B: int, T: int) -> None:
    exact.op(lambda x, p: x * p, torch.randn(T, B, 4), p=(T, 1, 4), batch_first=False)
    exact.op(lambda x, p: x + p, torch.randn(T, B, 4), p=(4,), batch_first=False)


def test_rows_of_several_views_and_positions(exact: Any) -> None:
    """(2·B·T, d): the batch concatenated with itself and flattened with its positions."""

    def views(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
        rows = torch.cat([x, x.flip(2)], 0).flatten(0, 1)
        one, two = ((rows * p + q).unflatten(0, (-1, x.shape[1]))).chunk(2)
        return one + two.tanh()

    exact.op(views, torch.randn(4, 4, 4), p=(4,), q=(1, 4))
    exact.op(views, torch.randn(3, 2, 5), p=(5,), q=())


def test_learned_attention_bias(exact_any: Any) -> None:
    for shape in ((4, 4), (1, 4, 4), (4, 4, 4), (1, 4, 4, 4)):
        exact_any.op(
            lambda x, bias: F.scaled_dot_product_attention(x, x.tanh(), x.cos(), attn_mask=bias),
            torch.randn(4, 4, 4, 4),
            bias=shape,
        )


def test_learned_attention_bias_with_other_sizes(exact: Any) -> None:
    exact.op(lambda x, b: F.scaled_dot_product_attention(x, x, x, b), torch.randn(3, 2, 4, 5), b=(2, 4, 4))
    exact.op(lambda x, b: F.scaled_dot_product_attention(x, x, x, b), torch.randn(3, 4, 5), b=(4, 4))


def test_learned_queries(exact: Any) -> None:
    exact.op(lambda x, q: F.scaled_dot_product_attention(q, x, x), torch.randn(4, 4, 4), q=(1, 4, 4))
    exact.op(
        lambda x, q: F.scaled_dot_product_attention(q.expand(x.shape[0], -1, -1, -1), x, x),
        torch.randn(3, 2, 4, 5),
        q=(1, 2, 3, 5),
    )


TOKENS = {
    "expand(B, -1, -1)": lambda x, p: torch.cat([p.expand(x.shape[0], -1, -1), x], 1),
    "expand(size)": lambda x, p: torch.cat((p.expand(x.size(0), p.shape[1], p.shape[2]), x), dim=1),
    "repeat": lambda x, p: torch.cat([p.repeat(x.shape[0], 1, 1), x], dim=-2),
    "behind": lambda x, p: torch.cat([x, p.expand(len(x), -1, -1)], 1),
    "tile": lambda x, p: torch.cat([p.tile(x.shape[0], 1, 1), x], 1),
    "expand squeezed": lambda x, p: torch.cat([p.squeeze(0).expand(x.shape[0], *p.shape[1:]), x], 1),
    "broadcast_to": lambda x, p: torch.cat([torch.broadcast_to(p, x.shape), x], 1),
    "cat(x, p * x)": lambda x, p: torch.cat([x, p * x], 1),
}


@pytest.mark.parametrize("B", [1, 3, 4])
@pytest.mark.parametrize("name", TOKENS)
def test_class_tokens(exact: Any, B: int, name: str) -> None:
    width = 4 if name in ("broadcast_to", "cat(x, p * x)") else 1
    exact.op(TOKENS[name], torch.randn(B, 4, 4), p=(1, width, 4))


def test_several_tokens_and_prompts(exact_any: Any) -> None:
    exact_any.op(
        lambda x, p, q: torch.cat([p.expand(len(x), -1, -1), q.expand(len(x), -1, -1), x], 1),
        torch.randn(4, 4, 4),
        p=(1, 4, 4),
        q=(1, 1, 4),
    )


def test_tokens_with_the_batch_in_dimension_one(exact: Any) -> None:
    exact.op(
        lambda x, p: torch.cat([p.expand(-1, x.shape[1], -1), x], 0),
        torch.randn(4, 4, 4),
        p=(1, 1, 4),
        batch_first=False,
    )


def test_stack(exact: Any) -> None:
    exact.op(lambda x, p: torch.stack([x, p.expand(len(x), -1)], 1), torch.randn(4, 4), p=(1, 4))
    exact.op(lambda x, p: torch.stack([x, p.repeat(len(x), 1)], -1), torch.randn(3, 4), p=(1, 4))
    exact.op(lambda x, p: torch.stack([p.expand(x.shape), x]).sum(0), torch.randn(4, 4), p=(4,))


def test_a_parameter_with_its_own_row_for_each_row_of_the_batch(exact_auto: Any) -> None:
    """Such a parameter's row i is sample i's alone."""
    sums = exact_auto.private(lambda x, p: x * p, 0.01 * torch.ones(4, 3), p=torch.ones(4, 3))
    torch.testing.assert_close(sums["p"], torch.full((4, 3), 2e-4, dtype=torch.float64))


def test_writing_the_batch_into_a_parameter_is_refused(exact_auto: Any) -> None:
    with pytest.raises(NoRuleError, match="writes the batch into a parameter in place"):
        exact_auto.private(lambda x, p: (p * 1).add_(x.sum(0)) + x, torch.randn(4, 4), p=(4,))


def test_a_parameter_concatenated_along_the_batch_is_refused(exact_auto: Any) -> None:
    with pytest.raises(NoRuleError, match="along the batch dimension"):
        exact_auto.private(lambda x, p: torch.cat([x, p], 0), torch.randn(4, 4), p=(2, 4))


def test_operands_with_the_batch_in_different_dimensions_are_refused(exact_auto: Any) -> None:
    with pytest.raises(PrivacyError, match="in different ways"):
        exact_auto.private(lambda x, p: torch.addcmul(p, x, x.t()), torch.randn(4, 4), p=(4,))


def test_a_learned_mask_token(exact: Any) -> None:
    exact.op(lambda x, p: torch.where(x[..., :1] > 0, p, x), torch.randn(4, 4, 4), p=(4,))


def test_masked_fill_with_a_parameter(exact: Any) -> None:
    exact.op(lambda x, p: x.masked_fill(x > 0, p), torch.randn(4, 4, 4), p=())


def test_concatenation_along_an_axis(exact: Any) -> None:
    exact.op(lambda x, p: torch.concat([p.expand(x.shape[0], -1, -1), x], axis=1), torch.randn(4, 4, 4), p=(1, 1, 4))


LIKE = {
    "broadcast_to": lambda x, p: torch.cat([p.broadcast_to(x.shape), x], 1),
    "to dtype": lambda x, p: x + p.to(x.dtype),
    "type": lambda x, p: x + p.type(x.dtype),
    "reshape": lambda x, p: x + p.reshape(x.shape[1:]),
    "expand_as": lambda x, p: p.expand_as(x) * x,
    "cat expand_as": lambda x, p: torch.cat([p.expand_as(x), x], 1),
    "type_as": lambda x, p: x + p.type_as(x),
    "to": lambda x, p: x + p.to(x),
    "view_as": lambda x, p: x + p.view_as(x[0]),
}


@pytest.mark.parametrize("name", LIKE)
def test_parameters_shaped_like_the_batch(exact_auto: Any, name: str) -> None:
    exact_auto.op(LIKE[name], torch.randn(3, 4, 5), p=(4, 5))
