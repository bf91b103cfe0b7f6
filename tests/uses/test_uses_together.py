import pytest
import torch

from tacit.uses import Dense, Gather, Outer, Use, segment_sums, small

B = 5


def uses() -> dict[str, Use]:
    torch.manual_seed(0)
    return {
        "bias": Dense(torch.randn(B, 7)),
        "scale": Dense(torch.randn(B, 3, 2)),
        "half": Dense(torch.randn(B, 4).bfloat16()),
        "number": Dense(torch.randn(B)),
        "large": Dense(torch.randn(B, 70, 70)),
        "double": Dense(torch.randn(B, 3, dtype=torch.float64)),
        "matrix": Outer(torch.randn(B, 2, 3), torch.randn(B, 2, 4), torch.Size((4, 3))),
    }


def test_the_same_numbers_as_each_by_itself():
    all_uses = uses()
    found, together = small(all_uses)
    assert together is not None
    assert together.names == ("bias", "scale", "half", "number", "matrix")
    assert isinstance(found["matrix"], Dense)  # the sum is of the numbers that the norm is of
    assert all(found[name] is use for name, use in all_uses.items() if name != "matrix")
    squares = dict(zip(together.names, together.squared_norms(), strict=True))
    factors = torch.rand(B, dtype=torch.float64)
    sums = together.weighted_sums(factors)
    for name in together.names:
        assert squares[name].dtype == torch.float64
        torch.testing.assert_close(squares[name], all_uses[name].squared_norms(), rtol=1e-6, atol=0)
        torch.testing.assert_close(sums[name], all_uses[name].weighted_sum(factors, 1.0))
    storages = {value.untyped_storage().data_ptr() for value in sums.values()}
    assert len(storages) == len(sums)


def test_numbers_that_float32_cannot_square():
    gradients = torch.tensor([[1e25, 0.0], [1e-30, 1e-30], [float("inf"), 0.0], [float("nan"), 0.0]])
    _, together = small({"one": Dense(gradients), "other": Dense(torch.zeros(4, 1))})
    assert together is not None
    squares = together.squared_norms()[0]
    torch.testing.assert_close(squares[:2], torch.tensor([1e50, 2e-60], dtype=torch.float64), rtol=1e-6, atol=0)
    assert not bool(torch.isfinite(squares[2:]).any())


def test_large_gradients_are_left_alone():
    """To lay them side by side costs more than calls do."""
    samples, size = 256, 1024
    large = {"large": Dense(torch.randn(samples, size)), "bias": Dense(torch.randn(samples, 7))}
    assert small(large)[1] is None
    _, together = small(large | {"scale": Dense(torch.randn(samples, 3))})
    assert together is not None
    assert together.names == ("bias", "scale")


def test_fewer_than_two_are_left_alone():
    assert small({"bias": Dense(torch.randn(B, 7))})[1] is None
    assert small({}) == ({}, None)


def test_factors_of_many_numbers_stay_factors():
    wide = Outer(torch.randn(B, 2, 80), torch.randn(B, 2, 50), torch.Size((50, 80)))
    found, together = small({"wide": wide, "bias": Dense(torch.randn(B, 7))})
    assert found["wide"] is wide
    assert together is None


def test_rows_of_a_small_table_are_made_whole():
    ids = torch.tensor([[0, 2, 0]]).repeat(B, 1)
    table = Gather(ids, torch.randn(B, 3, 4), 6)
    large = Gather(ids, torch.randn(B, 3, 4), 2**12)
    found, together = small({"table": table, "large": large, "bias": Dense(torch.randn(B, 7))})
    assert together is not None
    assert together.names == ("table", "bias")
    assert found["large"] is large
    torch.testing.assert_close(together.squared_norms()[0], table.squared_norms(), rtol=1e-6, atol=0)
    factors = torch.rand(B, dtype=torch.float64)
    torch.testing.assert_close(together.weighted_sums(factors)["table"], table.weighted_sum(factors, 1.0))


@pytest.mark.parametrize("columns", [(3,), (2, 5, 1), (2**14, 3, 2**14, 2), (0, 3, 0, 0, 2, 0), (0,)])
def test_sums_of_segments(columns):
    values = torch.randn(2, sum(columns), dtype=torch.float64)
    expected = torch.stack([part.sum(1) for part in values.split(columns, 1)], 1)
    torch.testing.assert_close(segment_sums(values, columns), expected)
    values[0, :1] = float("nan")
    assert int(torch.isnan(segment_sums(values, columns)).sum()) == min(1, sum(columns))
