"""What a clip needs for itself, against what is alive while a use is normed and summed."""

import math

import pytest
import torch
from tests.scaling.live import Live

from tacit.scaling.transients import transient
from tacit.uses import Dense, Gather, Outer, Product, TableAndHead

HALF = torch.bfloat16


def outer(samples, positions, inputs, outputs, dtype=torch.float32):
    a, g = torch.randn(samples, positions, inputs), torch.randn(samples, positions, outputs)
    return Outer(a.to(dtype), g.to(dtype), torch.Size((outputs, inputs)))


def gather(samples, positions, rows, width):
    ids = torch.randint(0, rows, (samples, positions))
    return Gather(ids, torch.randn(samples, positions, width), rows)


USES = {
    "long": lambda: outer(3, 200, 20, 30),
    "wide": lambda: outer(3, 20, 200, 300),
    "half": lambda: outer(3, 100, 120, 80, HALF),
    "one position": lambda: outer(5, 1, 200, 300),
    "alike": lambda: outer(32, 32, 32, 32),
    "table": lambda: gather(4, 60, 500, 70),
    "dense": lambda: Dense(torch.randn(6, 200, 300)),
    "tied": lambda: TableAndHead(gather(4, 60, 500, 70), outer(4, 60, 70, 500)),
}


def measured(use):
    live = Live()
    live.ignore(*use.parts)
    with live:
        use.squared_norms()
        use.weighted_sum(torch.ones(use.samples, dtype=torch.float64), math.inf)
    return live.peak


@pytest.mark.parametrize("name", USES)
def test_a_bound_that_is_not_far_off(name):
    torch.manual_seed(0)
    use = USES[name]()
    found, alive = transient(use, alone=False), measured(use)
    # Below, by what is small: (B,) in float64, row numbers. Above, by the sum in float64, which torch makes inside.
    assert 0.9 * alive <= found <= 2.2 * alive


def test_a_whole_gradient_counts_where_it_is_not_held():
    use = outer(3, 7, 20, 30)
    stored = use.stored()
    stored.product = Product(3, 7, 20, 30)
    total, whole, factors = 600 * 4, 3 * 600 * 4, 3 * 7 * 50 * 4
    assert transient(stored, alone=False) == total
    assert transient(stored, alone=True) == total + whole + factors
