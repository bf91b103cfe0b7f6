"""Rows of a table that are looked up by constant numbers, one row of numbers for each sample."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tacit.capture import derived
from tacit.testing import check_exactness


class Positions(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.tokens = nn.Embedding(9, 4)
        self.places = nn.Embedding(7, 4, padding_idx=2 if how == "padded" else None)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1]).expand_as(ids)
        if self.how == "repeated":
            places = places // 2
        looked = F.embedding(places, self.places.weight * 2) if self.how == "scaled" else self.places(places)
        return self.head(torch.tanh(self.tokens(ids) + looked).mean(1))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("how", ["plain", "repeated", "padded", "scaled"])
@pytest.mark.parametrize(("batch", "length"), [(4, 6), (5, 5), (1, 3)])
@pytest.mark.parametrize("mode", ["auto", "hooks"])
def test_exact(how: str, batch: int, length: int, mode: str) -> None:
    torch.manual_seed(0)
    ids, labels = torch.randint(0, 9, (batch, length)), torch.randint(0, 3, (batch,))
    check_exactness(Positions(how).double(), loss, (ids, labels), grad_sample_mode=mode)


def test_what_is_a_lookup() -> None:
    table = torch.randn(5, 3, requires_grad=True)
    ids = torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(derived.looked_up(F.embedding(ids, table)), ids)
    for other in (
        F.embedding(ids, table, padding_idx=1),
        F.embedding(ids, table, scale_grad_by_freq=True),
        F.embedding(ids, table * 2),
        F.embedding(ids, table) * 2,
        table,
        table.detach(),
    ):
        assert derived.looked_up(other) is None
