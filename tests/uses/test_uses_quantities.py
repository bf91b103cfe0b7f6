from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tacit.uses import Asked, Dense, Gather, Outer, Use, join

B = 4
LIMIT = 1e3
DTYPES = [torch.float64, torch.float32]


def outer(T: int, d: int, p: int, dtype: torch.dtype, *, flipped: bool = False) -> tuple[Use, Tensor]:
    a, g = torch.randn(B, T, d, dtype=dtype), torch.randn(B, T, p, dtype=dtype)
    shape = torch.Size((d, p) if flipped else (p, d))
    equation = "btp,btd->bdp" if flipped else "btp,btd->bpd"
    return Outer(a, g, shape, flipped=flipped), torch.einsum(equation, g.double(), a.double())


def form_of(pair: tuple[Use, Tensor], name: str, asked: Asked) -> tuple[Use, Tensor]:
    use, value = pair
    assert isinstance(use, Outer)
    return use.forms(asked)[name](), value


def gather(T: int, d: int, rows: int, dtype: torch.dtype) -> tuple[Use, Tensor]:
    ids, g = torch.randint(0, rows, (B, T)), torch.randn(B, T, d, dtype=dtype)
    onehot = torch.nn.functional.one_hot(ids, rows).double()
    return Gather(ids, g, rows), torch.einsum("btv,btd->bvd", onehot, g.double())


def dense(d: int, p: int, dtype: torch.dtype) -> tuple[Use, Tensor]:
    value = torch.randn(B, p, d, dtype=dtype)
    return Dense(value), value.double()


def sum_of(*pairs: tuple[Use, Tensor]) -> tuple[Use, Tensor]:
    return join([use for use, _ in pairs]), torch.stack([value for _, value in pairs]).sum(0)


MAKERS: dict[str, Callable[[torch.dtype], tuple[Use, Tensor]]] = {
    "outer": lambda t: outer(3, 5, 6, t),
    "outer-one-position": lambda t: outer(1, 5, 6, t),
    "outer-coinciding": lambda t: outer(B, B, B, t),
    "outer-flipped": lambda t: outer(3, 5, 6, t, flipped=True),
    "outer-stored": lambda t: form_of(outer(3, 5, 6, t), "stored", Asked.BOTH),
    "outer-stored-flipped": lambda t: form_of(outer(3, 5, 6, t, flipped=True), "stored", Asked.BOTH),
    "outer-formed": lambda t: form_of(outer(3, 5, 6, t), "stored", Asked.NORM),
    "outer-formed-coinciding": lambda t: form_of(outer(B, B, B, t, flipped=True), "stored", Asked.NORM),
    "outer-for-a-sum": lambda t: form_of(outer(3, 5, 6, t), "gram", Asked.SUM),
    "outer-narrow": lambda t: outer(3, 2, 7, t),
    "outer-wide": lambda t: outer(3, 7, 2, t),
    "gather": lambda t: gather(6, 5, 3, t),
    "gather-one-position": lambda t: gather(1, 5, 3, t),
    "gather-coinciding": lambda t: gather(B, B, B, t),
    "gather-one-row": lambda t: gather(5, 2, 1, t),
    "dense": lambda t: dense(5, 6, t),
    "outer + outer": lambda t: sum_of(outer(3, 5, 6, t), outer(2, 5, 6, t)),
    "flipped + flipped": lambda t: sum_of(outer(3, 5, 6, t, flipped=True), outer(1, 5, 6, t, flipped=True)),
    "outer + flipped": lambda t: sum_of(outer(3, 5, 6, t), outer(2, 6, 5, t, flipped=True)),
    "gather + gather": lambda t: sum_of(gather(6, 5, 3, t), gather(2, 5, 3, t)),
    "table and head": lambda t: sum_of(gather(6, 5, 3, t), outer(4, 5, 3, t)),
    "tables and heads": lambda t: sum_of(outer(4, 5, 3, t), gather(6, 5, 3, t), outer(1, 5, 3, t), gather(1, 5, 3, t)),
    "table and flipped": lambda t: sum_of(gather(6, 5, 3, t), outer(4, 3, 5, t, flipped=True)),
    "table and dense": lambda t: sum_of(gather(6, 5, 3, t), dense(5, 3, t)),
    "dense + dense": lambda t: sum_of(dense(5, 3, t), dense(5, 3, t)),
    "all kinds": lambda t: sum_of(dense(5, 3, t), outer(4, 5, 3, t), gather(2, 5, 3, t), dense(5, 3, t)),
    "outer twice the same": lambda t: _twice(outer(3, 5, 6, t)),
    "table and head coinciding": lambda t: sum_of(gather(B, B, B, t), outer(B, B, B, t)),
}
USES = pytest.mark.parametrize("name", MAKERS)
PRECISIONS = pytest.mark.parametrize("dtype", DTYPES)


def _twice(pair: tuple[Use, Tensor]) -> tuple[Use, Tensor]:
    return sum_of(pair, pair)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@USES
@PRECISIONS
def test_every_quantity_equals_the_dense_one(name: str, dtype: torch.dtype) -> None:
    use, expected = MAKERS[name](dtype)
    factors = torch.rand(B, dtype=torch.float64)
    assert use.samples == B
    assert use.shape == expected.shape[1:]
    squares = use.squared_norms()
    assert squares.dtype == torch.float64
    close(squares, expected.square().sum((1, 2)), dtype)
    total = use.weighted_sum(factors, LIMIT)
    assert total.shape == use.shape
    assert total.dtype == dtype
    close(total, torch.einsum("b,bpd->pd", factors, expected), dtype)
    close(use.dense(), expected, dtype)


@USES
def test_quantities_can_be_asked_for_in_any_order(name: str) -> None:
    """Nothing is computed in place on what the use holds."""
    use, expected = MAKERS[name](torch.float64)
    for _ in range(2):
        close(use.squared_norms(), expected.square().sum((1, 2)), torch.float64)
        close(use.weighted_sum(torch.ones(B), LIMIT), expected.sum(0), torch.float64)
        close(use.dense(), expected, torch.float64)


@USES
@PRECISIONS
def test_transposed(name: str, dtype: torch.dtype) -> None:
    use, expected = MAKERS[name](dtype)
    turned, expected = use.transposed(), expected.transpose(1, 2)
    assert turned.shape == expected.shape[1:]
    close(turned.squared_norms(), expected.square().sum((1, 2)), dtype)
    close(
        turned.weighted_sum(torch.arange(B).double(), LIMIT),
        torch.einsum("b,bpd->pd", torch.arange(B).double(), expected),
        dtype,
    )
    close(turned.dense(), expected, dtype)
    close(turned.transposed().dense(), expected.transpose(1, 2), dtype)


@USES
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_dropped_samples_leave_exact_zeros(name: str, poison: float) -> None:
    use, expected = MAKERS[name](torch.float32)
    _poison(use, 1, poison)
    assert not torch.isfinite(use.squared_norms()[1])
    assert torch.isfinite(use.squared_norms()[[0, 2, 3]]).all()
    dropped = torch.tensor([False, True, False, False])
    clean, expected = use.without(dropped), expected * (~dropped)[:, None, None]
    squares = clean.squared_norms()
    assert squares[1] == 0
    close(squares, expected.square().sum((1, 2)), torch.float32)
    close(clean.weighted_sum(torch.ones(B), LIMIT), expected.sum(0), torch.float32)
    assert (clean.dense()[1] == 0).all()
    assert not torch.isfinite(use.squared_norms()[1]), "the original use was changed"


def _poison(use: Use, sample: int, value: float) -> None:
    for part in vars(use).values():
        if isinstance(part, Use):
            _poison(part, sample, value)
        elif isinstance(part, Tensor) and part.is_floating_point():
            part[sample, 0, 0] = value


# Uses of different kinds are added in the input's own type; what is released and its norm then agree all the same.
MIXED = ("outer + flipped", "table and flipped", "table and dense", "all kinds")


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in MIXED])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_squared_in_float32(name: str, dtype: torch.dtype) -> None:
    """Not a tolerance for half precision: the inputs are what they are, the arithmetic is wide."""
    use, expected = MAKERS[name](dtype)
    squares = use.squared_norms()
    assert squares.dtype == torch.float64
    tolerance = 2e-5 if name != "dense + dense" else 1e-2
    torch.testing.assert_close(squares, expected.square().sum((1, 2)), rtol=tolerance, atol=0)


@USES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums(name: str, dtype: torch.dtype) -> None:
    use, expected = MAKERS[name](dtype)
    rounding = 4 * torch.finfo(dtype).eps * expected.abs().max()
    assert (use.weighted_sum(torch.ones(B), LIMIT).double() - expected.sum(0)).abs().max() < B * rounding
    assert (use.dense().double() - expected).abs().max() < rounding
