"""Two passes where the uses of one parameter cancel: what is summed is what was bounded."""

import pytest
import torch
from torch import nn

from tacit.testing import private_gradients, single_sample_loop

WAYS = pytest.mark.parametrize("way", [{"memory_budget": 1}, {"grad_sample_mode": "ghost"}], ids=["budget", "ghost"])
RECORDS, WIDTH, OUTPUTS, ROWS = 512, 4, 2, 20
SIZE = 1e5
"""How much longer the gradient of one use is than what is left of two."""


class Twins(nn.Module):
    """One layer for two inputs that nearly are the same: its weight is used twice, and its bias."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, OUTPUTS)

    def forward(self, x, weights):
        return ((self.layer(x[:, 0]) - self.layer(x[:, 1])) * weights).sum(1)


class Bias(nn.Module):
    """A bias whose two uses cancel."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(OUTPUTS))

    def forward(self, x, weights):
        scaled = weights * (1 + x[:, 0, :OUTPUTS] / SIZE)
        return ((self.bias + x[:, 0, :OUTPUTS]) * scaled - (self.bias + x[:, 1, :OUTPUTS]) * weights).sum(1)


class Tied(nn.Module):
    """Rows that are looked up, and the same table as a layer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)

    def forward(self, x, weights):
        ids = (x[:, 1, :OUTPUTS] * 1e3).long().abs() % ROWS
        scores = (x[:, 0] @ self.table.weight.t()).gather(1, ids)
        return ((scores - (self.table(ids) * x[:, 1:]).sum(2)) * weights).sum(1)


class Summed(nn.Module):
    """A criterion over losses of single samples."""

    reduction = "sum"

    def forward(self, losses):
        return losses.sum() if self.reduction == "sum" else losses


def loss_fn(model, batch, criterion=torch.sum):
    return criterion(model(*batch))


def batch_that_cancels():
    torch.manual_seed(1)
    x = torch.randn(RECORDS, 1, WIDTH)
    return torch.cat([x, x + torch.randn(RECORDS, 1, WIDTH) / SIZE], 1), torch.randn(RECORDS, OUTPUTS) * SIZE


def clipped_sum(model, batch, way):
    criterion = Summed() if way.get("grad_sample_mode") == "ghost" else None
    settings = {"max_grad_norm": 1.0, "loss_reduction": "sum", "criterion": criterion, **way}
    _, sums = private_gradients(model, loss_fn, batch, **settings)
    return torch.cat([each.double().flatten() for each in sums.values()])


@WAYS
@pytest.mark.parametrize("make", [Twins, Bias, Tied])
def test_a_record_moves_the_sum_by_no_more_than_the_bound(way, make):
    torch.manual_seed(0)
    model, batch = make(), batch_that_cancels()
    whole = clipped_sum(model, batch, way)
    for record in range(4):
        others = torch.arange(RECORDS) != record
        moved = whole - clipped_sum(model, [rows[others] for rows in batch], way)
        assert float(moved.norm()) <= 1.0003


@WAYS
@pytest.mark.parametrize("make", [Bias, Tied])
def test_two_passes_sum_what_one_does(way, make):
    torch.manual_seed(0)
    model, batch = make(), batch_that_cancels()
    two, one = clipped_sum(model, batch, way), clipped_sum(model, batch, {})
    assert float((two - one).norm() / one.norm()) < 1e-5


@WAYS
def test_what_is_left_is_that_of_a_loop_over_samples(way):
    torch.manual_seed(0)
    model, batch = Twins(), [rows[:32] for rows in batch_that_cancels()]
    reference = single_sample_loop(model, loss_fn, batch, max_grad_norm=1.0)
    due = torch.cat([each.flatten() for each in reference.sums.values()])
    assert float((clipped_sum(model, batch, way) - due).norm() / due.norm()) < 1e-5


@WAYS
def test_what_is_written_between_two_uses_is_bounded(way):
    """A hook writes into a gradient that a first use has already recorded."""

    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, OUTPUTS, bias=False)

        def forward(self, x, weights):
            first, second = self.layer(x), self.layer(-x)
            if first.requires_grad:
                first.register_hook(lambda g: g.mul_(1 + 1e-3))
            return ((first + second) * 1.0 * weights).sum(1)

    torch.manual_seed(0)
    batch = torch.randn(1, WIDTH), torch.randn(1, OUTPUTS) * SIZE
    assert float(clipped_sum(Written(), batch, way).norm()) <= 1.0003
