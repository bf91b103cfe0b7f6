"""How much more than the clipping bound one sample can move a sum in float32: less than the noise pays for."""

import pytest
import torch
from torch import nn

from tacit.mechanisms.rounding import ROUNDING, rounding_of
from tacit.testing import private_gradients

BOUND = 1.0


class Text(nn.Module):
    """An embedding, attention-free mixing in time, and a head; tied."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 24)
        self.inner = nn.Linear(24, 24)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(torch.tanh(self.inner(self.table(ids))).mean(1), self.table.weight)


def image() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 5)), lambda n: torch.randn(n, 40) * 100),
    "image": (image, lambda n: torch.randn(n, 3, 8, 8)),
    "text": (Text, lambda n: torch.randint(0, 50, (n, 64))),
}


def clipped_sum(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    _, found = private_gradients(
        model,
        lambda m, b: 1e3 * nn.functional.cross_entropy(m(b[0]), b[1], reduction="sum"),
        batch,
        max_grad_norm=BOUND,
        loss_reduction="sum",
    )
    return torch.cat([g.flatten() for g in found.values()])


@pytest.mark.parametrize("samples", [1, 16, 129, 1024])
@pytest.mark.parametrize("name", MODELS)
def test_one_sample_moves_the_sum_by_little_more_than_the_bound(name: str, samples: int) -> None:
    """All are clipped, and alike in direction where labels are: the sum is as long as it can be."""
    torch.manual_seed(samples)
    make, draw = MODELS[name]
    model, x, y = make(), draw(samples + 1), torch.zeros(samples + 1, dtype=torch.int64)
    with_it, without = clipped_sum(model, (x, y)).double(), clipped_sum(model, (x[:-1], y[:-1])).double()
    moved = float((with_it - without).norm())
    assert moved <= BOUND * (1 + ROUNDING / 32)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("name", MODELS)
def test_also_where_all_others_move_up(name: str, processes: int) -> None:
    """The first sample: all others are summed in another order, and move from one process to the next.

    Each takes every n-th sample, and the mean of their sums is formed in float32.
    """
    torch.manual_seed(processes)
    make, draw = MODELS[name]
    model, x, y = make(), draw(513), torch.zeros(513, dtype=torch.int64)

    def mean(first: int) -> torch.Tensor:
        parts = [slice(first + rank, None, processes) for rank in range(processes)]
        total = torch.zeros(())
        for part in parts:
            total = total + clipped_sum(model, (x[part], y[part])) / processes
        return total.double()

    moved = float((mean(0) - mean(1)).norm())
    assert moved <= BOUND / processes * (1 + ROUNDING / 4)


@pytest.mark.parametrize(("records", "moved"), [(1025, 3.8e-5), (4097, 2.4e-4), (16385, 1.4e-3), (32769, 4e-3)])
def test_more_is_paid_for_large_sums(records: int, moved: float) -> None:
    """What was measured for records that all point one way, of an MLP, where one more has no gradient itself."""
    assert 2 * moved < rounding_of(records)
    assert rounding_of(2048) == rounding_of(1) == ROUNDING
