import dataclasses

import pytest
from benchmarks.measure import Measurement, Timing

from benchmarks import plot


def measurement(*ratios):
    return Measurement("tacit auto", 4, tuple(Timing(r / 100, 0.0005) for r in ratios), ratios)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_plot(tmp_path, ending):
    path = tmp_path / f"bars.{ending}"
    plain, auto = measurement(1.0, 1.0, 1.0), measurement(2.0, 1.5, 1.75)
    ghost = dataclasses.replace(auto, name="tacit ghost")
    plot.save({"mlp": [plain, auto, ghost], "encoder": [plain, auto]}, path)  # ghost took no part in the second
    assert path.stat().st_size > 1000
