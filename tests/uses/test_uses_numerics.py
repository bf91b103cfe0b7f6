"""A norm that comes out too small is a privacy failure: the sample would be clipped too little."""

import pytest
import torch
from torch import Tensor

from tacit.uses import Dense, FullPrecision, Gather, Outer, Use, join
from tacit.uses.numerics import BLOCK, FEW, cancelled, sample_squares, wide

TYPES = [torch.float32, torch.bfloat16]
FORMED = pytest.mark.parametrize("formed", [False, True], ids=["gram", "formed"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def true_squares(a: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("btp,btd->bpd", g.double(), a.double()).square().sum((1, 2))


def squares_on(device: str, a: Tensor, g: Tensor, *, formed: bool = False) -> Tensor:
    """‖Σ_t g_t ⊗ a_t‖² of each sample, as a clip on a device finds it."""
    with FullPrecision(torch.device(device)):
        shape = torch.Size((g.shape[-1], a.shape[-1]))
        return Outer(a.to(device), g.to(device), shape, formed=formed).squared_norms().cpu()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-6, 0.0])
@pytest.mark.parametrize("T", [2, 8])
@FORMED
def test_positions_that_nearly_cancel(dtype: torch.dtype, size: float, T: int, formed: bool, device: str) -> None:
    """g_t ⊗ a_t and its negative, up to a perturbation."""
    a = torch.randn(3, T, 16).repeat(1, 2, 1)
    g = torch.randn(3, T, 8)
    g = torch.cat([g, -g + size * torch.randn(3, T, 8)], 1)
    a, g = a.to(dtype), g.to(dtype)
    found = squares_on(device, a, g, formed=formed)
    expected = true_squares(a, g)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-30)


@FORMED
@pytest.mark.parametrize("size", [1e-25, 1e-12, 1.0, 1e12])
def test_factors_that_float32_cannot_square(size: float, formed: bool) -> None:
    a, g = torch.randn(3, 4, 5) * size, torch.randn(3, 4, 4) / size
    found = Outer(a, g, torch.Size((4, 5)), formed=formed).squared_norms()
    torch.testing.assert_close(found, true_squares(a, g), rtol=1e-4, atol=0)


@FORMED
def test_many_positions_that_cancel_exactly(formed: bool, device: str) -> None:
    a = torch.ones(2, 64, 4) * 1000
    g = torch.ones(2, 64, 4)
    g[:, ::2] = -1
    g[1, 0, 0] += 1e-3
    found = squares_on(device, a, g, formed=formed)
    torch.testing.assert_close(found, true_squares(a, g), rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6, 0.0])
def test_a_head_that_cancels_its_table(size: float) -> None:
    """The tied head's gradient undoes the embedding's: ‖E + H‖² must not come from ‖E‖² + ‖H‖² − 2‖E‖‖H‖ in float32."""
    ids, g = torch.arange(4).expand(3, 4).contiguous(), torch.randn(3, 4, 5)
    onehot = torch.nn.functional.one_hot(ids, 6).float()
    head = -g + size * torch.randn(3, 4, 5)
    use = join([Gather(ids, g, 6), Outer(head, onehot, torch.Size((6, 5)))])
    dense = torch.einsum("btv,btd->bvd", onehot.double(), g.double() + head.double())
    torch.testing.assert_close(use.squared_norms(), dense.square().sum((1, 2)), rtol=1e-2, atol=1e-30)


def test_two_uses_that_cancel() -> None:
    a, g = torch.randn(3, 4, 5), torch.randn(3, 4, 6)
    use = join([Outer(a, g, torch.Size((6, 5))), Outer(a, -g, torch.Size((6, 5)))])
    assert (use.squared_norms() < 1e-9).all()
    both = join([Gather(torch.zeros(3, 4, dtype=torch.long), g, 2), Gather(torch.zeros(3, 4, dtype=torch.long), -g, 2)])
    assert (both.squared_norms() < 1e-9).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_one_sample_that_cancels_among_others_that_do_not(dtype: torch.dtype, device: str) -> None:
    a, g = torch.randn(3, 2, 16).to(dtype), torch.randn(3, 2, 8).to(dtype)
    a[1, 1], g[1, 1] = a[1, 0], -g[1, 0] * (1 + 2**-7)
    found = squares_on(device, a, g)
    torch.testing.assert_close(found, true_squares(a, g), rtol=1e-3, atol=0)


def test_tiny_and_huge_gradients_in_bfloat16() -> None:
    for scale in (1e-15, 1e-8, 1e8):
        a, g = torch.randn(2, 3, 4).bfloat16(), (torch.randn(2, 3, 4) * scale).bfloat16()
        found = Outer(a, g, torch.Size((4, 4))).squared_norms()
        assert (found > 0).all()
        torch.testing.assert_close(found, true_squares(a, g), rtol=1e-4, atol=0)


def test_what_underflows_in_float32_is_far_below_any_bound() -> None:
    a, g = torch.ones(2, 3, 4), torch.full((2, 3, 4), 1e-25)
    found = Outer(a, g, torch.Size((4, 4))).squared_norms()
    assert (found.sqrt() <= 1e-18).all()
    assert (true_squares(a, g).sqrt() <= 1e-18).all()


def test_long_sums_keep_their_precision() -> None:
    values = torch.full((1, 3_000_000), 0.1)
    expected = values.double().square().sum()
    assert abs(float(sample_squares(values)) / float(expected) - 1) < 1e-6
    assert abs(float(Dense(values).squared_norms()) / float(expected) - 1) < 1e-6


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_squares_at_the_edges_of_blocks(size: int) -> None:
    values = torch.randn(3, size)
    torch.testing.assert_close(sample_squares(values), values.double().square().sum(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_bad_sample_spoils_its_own_norm_only(poison: float) -> None:
    a, g = torch.randn(3, 4, 5), torch.randn(3, 4, 6)
    g[1, 2, 3] = poison
    uses: list[Use] = [Outer(a, g, torch.Size((6, 5))), Gather(torch.zeros(3, 4, dtype=torch.long), g, 2), Dense(g)]
    for use in uses:
        squares = use.squared_norms()
        assert torch.isfinite(squares).tolist() == [True, False, True]


def test_wide_leaves_full_precision_alone() -> None:
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert wide(torch.zeros(1, dtype=dtype)).dtype == expected
    x = torch.zeros(1)
    assert wide(x) is x


def test_suspicion_is_raised_by_small_results_only() -> None:
    squares = torch.tensor([1.0, 1e-9, -1e-9, 0.0, 1.0], dtype=torch.float64)
    bound = torch.tensor([1.0, 1.0, 1.0, 1.0, float("inf")], dtype=torch.float64)
    assert cancelled(squares, bound, torch.float32).tolist() == [False, True, True, True, False]
    assert not cancelled(torch.zeros(2).double(), torch.zeros(2).double(), torch.float32).any()


@pytest.mark.parametrize("size", [FEW // 2, FEW // 2 + 1])
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e15, 1e25])
def test_squares_of_few_and_of_many_numbers(size: int, scale: float) -> None:
    """Up to ``FEW`` numbers are summed in float64 at once, more in blocks, with care for their range."""
    values = torch.randn(2, size) * scale
    torch.testing.assert_close(sample_squares(values), values.double().square().sum(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("T", [2, 16, 64])
@pytest.mark.parametrize(("d", "p"), [(16, 16), (64, 64), (2048, 128)])
@pytest.mark.parametrize("apart", [0.005, 0.01, 0.02, 0.05, 0.2, 1.0])
def test_rounding_makes_no_norm_smaller_than_noise_pays_for(T: int, d: int, p: int, apart: float, device: str) -> None:
    """Positions that nearly cancel, down to where norms are computed again: 2⁻¹² is paid for in all."""
    signs = torch.ones(T)
    signs[T // 2 :] = -1
    a = torch.randn(48, 1, d) + apart * torch.randn(48, T, d)
    g = (torch.randn(48, 1, p) + apart * torch.randn(48, T, p)) * signs[None, :, None]
    norms = squares_on(device, a, g).sqrt()
    expected = true_squares(a, g).sqrt()
    assert float((expected / norms).max()) < 1 + 4e-5
    assert float((norms / expected).max()) < 1 + 4e-2


@pytest.mark.parametrize("tied", [False, True])
def test_looked_up_rows_that_cancel_are_summed_as_they_were_normed(tied: bool) -> None:
    """Terms of 2²⁶ and 1 of one row: in float32 their sum is 0 or 8, as they come."""
    weights = torch.tensor([2.0**26, 1.0, -(2.0**26), -0.5])
    g = weights[None, :, None] * torch.tensor([1.0, -2.0, 3.0])
    ids = torch.ones(1, 4, dtype=torch.long)
    uses: list[Use] = [Gather(ids, g, 5)]
    if tied:
        uses.append(Outer(torch.full((1, 1, 3), 0.25), torch.full((1, 1, 5), 0.5), torch.Size((5, 3))))
    use = join(uses)
    dense = torch.zeros(1, 5, 3, dtype=torch.float64)
    dense[0, 1] = g.double()[0].sum(0)
    dense += 0.125 if tied else 0
    norms = use.squared_norms().sqrt()
    torch.testing.assert_close(norms, dense.square().sum((1, 2)).sqrt(), rtol=1e-5, atol=0)
    bound = 1e-3
    total = sum(each.weighted_sum(bound / norms, bound) for each in uses)
    torch.testing.assert_close(total.double(), (bound / norms)[:, None] * dense[0], rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(use.weighted_sum(bound / norms, bound), total, rtol=1e-4, atol=1e-9, check_dtype=False)


def test_rows_that_nearly_are_one_vector(device: str) -> None:
    """Their products all round the same way, T² times."""
    a, g = torch.full((4, 256, 256), 1 / 3), torch.full((4, 256, 8), 0.7)
    a += 3e-3 * torch.randn_like(a)
    g = (g + 3e-3 * torch.randn_like(g)) * (torch.arange(256) % 2 * 2 - 1)[None, :, None]
    norms = squares_on(device, a, g).sqrt()
    assert float((true_squares(a, g).sqrt() / norms).max()) < 1 + 1e-4
