from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tacit.errors import ConfigurationError, NoRuleError
from tacit.testing import check_exactness

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padding": {"padding_idx": 1},
    "padding-zero": {"padding_idx": 0},
    "negative-padding": {"padding_idx": -2},
    "by-frequency": {"scale_grad_by_freq": True},
    "by-frequency-padding": {"scale_grad_by_freq": True, "padding_idx": 2},
}


def ids(*shape: int, rows: int = 5) -> Tensor:
    """Few rows, so that ids repeat within a sample."""
    return torch.randint(0, rows, shape)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shape", [(4,), (3, 6), (4, 4), (3, 2, 4), (1, 5), (3, 1)], ids=str)
def test_look_ups(exact_any: Any, name: str, shape: tuple[int, ...]) -> None:
    table = nn.Embedding(5, 4, **OPTIONS[name])
    batch = ids(*shape)
    batch.view(-1)[0] = 3  # at least one row that is no padding
    exact_any(table, batch)


def test_samples_without_ids(exact_any: Any) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.shift = nn.Embedding(5, 4), nn.Parameter(torch.randn(4))

        def forward(self, batch: Tensor) -> Tensor:
            return self.table(batch).sum(1) + self.shift

    exact_any(Sum(), ids(4, 0))


def test_sparse_tables_get_the_same_dense_gradients(exact: Any) -> None:
    table, batch = torch.randn(5, 4), ids(3, 6)
    sparse, dense = (
        nn.Embedding.from_pretrained(table, freeze=False, sparse=True),
        nn.Embedding.from_pretrained(table, freeze=False),
    )
    found, expected = exact.private(sparse, batch)["weight"], exact.private(dense, batch)["weight"]
    assert not found.is_sparse
    assert expected.norm() > 0
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("repeated", [True, False])
def test_one_id_everywhere(exact: Any, repeated: bool) -> None:
    batch = torch.full((3, 4), 2) if repeated else torch.arange(12).view(3, 4)
    exact(nn.Embedding(12, 3), batch)


def test_padding_rows_get_no_gradient(exact: Any) -> None:
    table = nn.Embedding(5, 4, padding_idx=-1)
    report = exact(table, torch.tensor([[4, 4, 1], [4, 4, 2], [0, 4, 3]]))
    assert report.reference.sums["weight"][4].abs().sum() == 0


def test_the_batch_in_dimension_one(exact: Any) -> None:
    exact(nn.Embedding(5, 4), ids(4, 4), batch_first=False)
    exact(nn.Embedding(5, 4), ids(6, 3), batch_first=False)


def test_ids_flattened_inside_the_forward(exact: Any) -> None:
    exact.op(lambda i, w: F.embedding(i.flatten(), w).view(*i.shape, -1), ids(4, 4), w=(5, 4))
    exact.op(lambda i, w: F.embedding(i.t(), w).transpose(0, 1), ids(4, 4), w=(5, 4))


def test_indexing_a_table_with_ids(exact_any: Any) -> None:
    exact_any.op(lambda i, w: w[i], ids(4, 4), w=(5, 4))
    exact_any.op(lambda i, w: w[i], ids(3, 2, 4), w=(5, 2, 3))
    exact_any.op(lambda i, w: w[i], ids(4, 3), w=(5,))


def test_negative_ids_count_from_the_end(exact: Any) -> None:
    exact.op(lambda i, w: w[i - 5], ids(4, 4), w=(5, 3))


def test_int32_ids(exact: Any) -> None:
    exact(nn.Embedding(5, 4), ids(3, 4).int())


def test_a_table_without_repeats_in_one_wide_row(exact_any: Any) -> None:
    exact_any(nn.Embedding(7, 1), ids(3, 9, rows=7))


def test_relative_positions_computed_from_the_batch(exact: Any) -> None:
    """A bias looked up by the distance between ids of one sample."""
    exact.op(lambda i, w: w[(i[:, :, None] - i[:, None, :]) + 4].permute(0, 3, 1, 2), ids(4, 4), w=(9, 4))


def test_a_derived_table(exact: Any) -> None:
    exact.op(lambda i, w, s: F.embedding(i, w * s), ids(4, 4), w=(5, 4), s=(4,))
    exact.op(lambda i, w: F.embedding(i, w / w.norm(dim=1, keepdim=True)), ids(4, 4), w=(5, 4))
    exact.op(lambda i, w: F.embedding(i, w.t()), ids(4, 4), w=(4, 5))


def test_max_norm_is_refused(exact_auto: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"max_norm=1\.0.*Set max_norm=None"):
        exact_auto.private(nn.Embedding(5, 4, max_norm=1.0), ids(3, 4))


def test_indexing_a_parameter_by_a_mask_is_refused(exact_auto: Any) -> None:
    with pytest.raises(NoRuleError, match="indexing a parameter"):
        exact_auto.private(lambda x, w: x + w[x > 0].sum(), torch.randn(4, 4), w=(4, 4))


def test_frequencies_of_samples_with_different_numbers_of_rows(exact: Any) -> None:
    """Rows that fill up the shorter samples are no look-ups of id 0."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(3, 4, scale_grad_by_freq=True)

        def forward(self, ids: Any) -> Any:
            kept = ids < 2
            out = torch.zeros(*ids.shape, 4, dtype=self.table.weight.dtype) + 0 * ids[..., None]
            out[kept] = self.table(ids[kept])
            return out

    exact(Net(), torch.tensor([[0, 0, 1, 0], [0, 2, 2, 2], [1, 2, 0, 2]]))


class Direct(nn.Module):
    """Calls what ``F.embedding`` calls: the table first, and -1 for no padding."""

    def __init__(self, function: Any, **options: Any) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 4))
        self.function, self.options = function, options

    def forward(self, ids: Tensor) -> Tensor:
        return self.function(self.table, ids, **self.options)


@pytest.mark.parametrize("mode", ["auto", "functorch"])
@pytest.mark.parametrize("function", [torch.embedding, torch.ops.aten.embedding, torch.ops.aten.embedding.default])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}, {"padding_idx": 2}, {"scale_grad_by_freq": True}], ids=str)
def test_the_function_behind(function: Any, options: dict[str, Any], mode: str) -> None:
    torch.manual_seed(0)
    model = Direct(function, **options).double()
    batch = ids(4, 6)
    batch[0, :2] = torch.tensor([0, 2])
    check_exactness(model, lambda m, b: m(b).square().sum(), batch, loss_reduction="sum", grad_sample_mode=mode)
