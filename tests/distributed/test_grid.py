"""What processes release is the clipped sum of a loop over single samples: to 1e-5 in float32, in every cell.

``make grid`` runs all cells; the whole suite runs a few.
"""

from typing import Any

import pytest
import torch
from grid import CELLS, SUBSET, Cell, Found, data, loss, model_of, run
from processes import results

from tacit.checking.reference import single_sample_loop

TOLERANCE = 1e-5


@pytest.mark.filterwarnings("ignore")  # third parties'
@pytest.mark.parametrize("world", SUBSET)
def test_every_cell_equals_the_loop(world: int, request: pytest.FixtureRequest) -> None:
    whole = request.config.getoption("--grid")
    cells = CELLS if whole else SUBSET[world]
    found = results(world, run, cells, timeout=400.0 if whole else 60.0)
    errors = {cell: error(cell, [one[place] for one in found]) for place, cell in enumerate(cells)}
    wrong = {cell: each for cell, each in errors.items() if not each <= TOLERANCE}
    assert not wrong, wrong


def error(cell: Cell, found: list[Found]) -> float:
    """The largest error of any step, relative to the sum or to one clipped sample, whichever is larger."""
    first = found[0]
    worst = 0.0
    assert len(first.steps) > 0
    for number, (_, before, released) in enumerate(first.steps):
        parts = [one.steps[number] for one in found]
        for _, weights, same in parts[1:]:
            assert all(torch.equal(value, weights[name]) for name, value in before.items())
            assert all(torch.equal(value, same[name]) for name, value in released.items())
        rows = [row for own, *_ in parts for row in own]
        assert len(set(rows)) == len(rows)
        expected = reference(cell, before, rows, first.bound)
        off = torch.stack([(released[n].double() * first.expected - g).norm() for n, g in expected.items()]).norm()
        size = torch.stack([g.norm() for g in expected.values()]).norm()
        worst = max(worst, float(off) / max(float(size), first.bound))
    return worst


def reference(cell: Cell, weights: dict[str, Any], rows: list[int], bound: float) -> dict[str, Any]:
    model = model_of(cell)
    model.load_state_dict(weights, strict=False)
    if not rows:
        return {name: torch.zeros_like(value).double() for name, value in weights.items()}
    x, y, _ = data(cell)[torch.tensor(rows)]
    return dict(single_sample_loop(model, loss, (x, y), max_grad_norm=bound).sums)
