"""The first step is looked at, and said to be what it was."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine


def run(scale: float = 1.0, **settings: Any) -> PrivacyEngine:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 2), torch.randn(8, 4) * scale
    rate = settings.pop("lr", 0.1)
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=rate),
        data_loader=DataLoader(TensorDataset(x), batch_size=8),
        **{"noise_multiplier": 1.0, "max_grad_norm": 1.0} | settings,
    )
    assert engine.first_step is None
    for _ in range(2):
        for (batch,) in loader:
            optimizer.zero_grad()
            model(batch).square().sum(1).mean().backward()
            optimizer.step()
    return engine


def test_a_sound_step() -> None:
    step = run(max_grad_norm=1e-3).first_step
    assert step is not None
    assert (step.moved, step.noisy, step.problems) == (True, True, [])
    assert "Weights moved.\nNoise was added.\n100% of 8 samples were above the bound 0.001." in step.text
    assert "Every sample is clipped" in step.text


def test_no_noise_and_a_bound_that_is_not_active() -> None:
    step = run(noise_multiplier=0.0, max_grad_norm=1e6).first_step
    assert step is not None
    assert not step.noisy
    assert "nothing is private" in step.text
    assert "The bound is not active" in step.text


def test_a_learning_rate_of_zero_is_no_problem() -> None:
    step = run(lr=0.0).first_step
    assert step is not None
    assert not step.moved


def test_gradients_that_are_not_finite() -> None:
    with pytest.warns(UserWarning, match="no sample of the first batch has a finite gradient"):
        run(scale=float("nan"))
