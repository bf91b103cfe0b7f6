"""A small private run, for tests of what happens around one."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine

RECORDS = 24


def make(
    engine: PrivacyEngine | None = None, *, records: int = RECORDS, features: int = 3, **settings: Any
) -> tuple[Any, ...]:
    """A linear model on random records, in batches of 8: (engine, model, optimizer, loader)."""
    torch.manual_seed(0)
    model = nn.Linear(features, 2)
    engine = PrivacyEngine() if engine is None else engine
    data = TensorDataset(torch.randn(records, features), torch.randint(0, 2, (records,)))
    made = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=8),
        **{"noise_multiplier": 1.0, "max_grad_norm": 1.0} | settings,
    )
    return engine, *made


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    """Train on one batch."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any) -> None:
    """Train on every batch once."""
    for batch in loader:
        step(model, optimizer, batch)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any, *, steps: int) -> None:
    """Train for so many steps, each on the first batch of an epoch of its own."""
    for _ in range(steps):
        step(model, optimizer, next(iter(loader)))
