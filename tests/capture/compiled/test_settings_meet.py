"""Compiled forwards meet clipping by layers, and memory budgets."""

import copy

import pytest
import torch
from tests.capture.compiled.private import attach, gradients
from torch import nn

from tacit.errors import MemoryBudgetError
from tacit.testing import private_gradients


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).double()


def batch(samples):
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (samples,), generator=generator)


def test_clipping_by_layers():
    model = network()
    plain = copy.deepcopy(model)
    engine = attach(model, 0.2, clipping="per_layer")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for samples in (4, 3):
        right = private_gradients(plain, loss, batch(samples), max_grad_norm=0.2, clipping="per_layer")[1]
        for name, found in gradients(model, compiled, loss, batch(samples)).items():
            torch.testing.assert_close(found, right[name], rtol=1e-9, atol=1e-12)
    assert engine.stats.fraction_clipped > 0


def test_a_memory_budget_is_refused():
    model = network()
    attach(model, memory_budget=10**9)
    with pytest.raises(MemoryBudgetError, match="compiled forward"):
        loss(torch.compile(model, backend="aot_eager"), batch(4))
