"""How much more than the clipping bound one sample can move a sum in float32: less than the noise pays for."""

import pytest
import torch
from torch import nn

from tacit.mechanisms.gaussian import ROUNDING
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


@pytest.mark.parametrize("samples", [1, 16, 129, 1024])
@pytest.mark.parametrize("name", MODELS)
def test_one_sample_moves_the_sum_by_little_more_than_the_bound(name: str, samples: int) -> None:
    """All are clipped, and alike in direction where labels are: the sum is as long as it can be."""
    torch.manual_seed(samples)
    make, draw = MODELS[name]
    model, x, y = make(), draw(samples + 1), torch.zeros(samples + 1, dtype=torch.int64)

    def total(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        _, found = private_gradients(
            model,
            lambda m, b: 1e3 * nn.functional.cross_entropy(m(b[0]), b[1], reduction="sum"),
            batch,
            max_grad_norm=BOUND,
            loss_reduction="sum",
        )
        return torch.cat([g.double().flatten() for g in found.values()])

    with_it, without = total((x, y)), total((x[:-1], y[:-1]))
    moved = float((with_it - without).norm())
    assert moved <= BOUND * (1 + ROUNDING / 32)
