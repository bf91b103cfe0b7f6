"""The cost model weighs arithmetic against bytes, by rates that are measured once and kept on disk."""

import json

import pytest
import torch

from tacit.uses import DEFAULT_COSTS, Asked, CostModel, Product, costs_of, rates
from tacit.uses.cost import MAPPED


def best(product, costs=DEFAULT_COSTS):
    seconds = costs.seconds(product)
    return min(seconds, key=seconds.__getitem__)


def test_long_sequences_store_and_short_ones_do_not():
    assert best(Product(16, 512, 256, 256)) == "stored"
    assert best(Product(16, 2, 512, 512)) == "gram"


def test_rates_decide():
    product = Product(16, 64, 512, 512)
    assert best(product, CostModel(flops_per_second=1e10)) == "stored"
    assert best(product, CostModel(far_bytes_per_second=1e9, near_bytes_per_second=1e9)) == "gram"


def test_shared_grams_cost_less():
    alone, shared = (DEFAULT_COSTS.seconds(Product(16, 64, 64, 512, sharing=n))["gram"] for n in (1, 2))
    assert shared < alone


def test_what_one_pass_asks_costs_less_than_both():
    both, norm, total = (DEFAULT_COSTS.seconds(Product(16, 64, 64, 512, asked=asked)) for asked in Asked)
    assert norm["gram"] + total["gram"] == pytest.approx(both["gram"])
    assert norm["stored"] < both["stored"]
    assert total.keys() == {"gram"}  # nothing is quicker than one product


def test_bytes_of_the_forms():
    product = Product(3, 5, 7, 11)
    assert product.whole == 3 * 7 * 11 * 4
    assert product.factors == 3 * 5 * (7 + 11) * 4
    assert product.grams == 2 * 3 * 5 * 5 * 4


def test_large_whole_gradients_are_mapped_anew():
    """From 32 MiB on their memory costs more than their bytes."""
    below, above = Product(8, 64, 1023, 1024), Product(8, 64, 1024, 1024)
    assert below.whole < MAPPED == above.whole
    slow, quick = (CostModel(new_bytes_per_second=rate) for rate in (1e8, 1e12))
    assert slow.seconds(below) == quick.seconds(below)
    assert slow.seconds(above)["gram"] == quick.seconds(above)["gram"]
    assert slow.seconds(above)["stored"] - quick.seconds(above)["stored"] > 0.3
    assert slow.seconds(above._replace(asked=Asked.NORM)) == quick.seconds(above._replace(asked=Asked.NORM))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rates._costs_of.cache_clear()
    yield tmp_path / "tacit"
    rates._costs_of.cache_clear()


def test_the_best_of_a_few_measurements_is_kept(folder, monkeypatch):
    speeds, calls = [3.0, 5.0, 2.0, 4.0, 1.0, 9.0], []

    def measured(device, dtype):
        calls.append(dtype)
        return CostModel(flops_per_second=speeds[len(calls) - 1], far_bytes_per_second=10 - speeds[len(calls) - 1])

    def asked(dtype):
        rates._costs_of.cache_clear()  # as another process
        return costs_of(torch.device("cpu"), dtype)

    monkeypatch.setattr(rates, "measured", measured)
    found = [asked(torch.float32).flops_per_second for _ in range(7)]
    assert found == [3, 5, 5, 5, 5, 5, 5]
    assert asked(torch.float32).far_bytes_per_second == 9
    assert len(calls) == 5
    assert asked(torch.float64).flops_per_second == 9
    assert costs_of(torch.device("cpu"), torch.float64).flops_per_second == 9
    assert len(json.loads((folder / "rates.json").read_text())) == 2
    assert len(calls) == 6


@pytest.mark.parametrize("content", ["", "[1]", '{"x": {"flops_per_second": 1}}', '{"x": 1}'])
def test_a_torn_file_is_measured_again(folder, content):
    folder.mkdir()
    (folder / "rates.json").write_text(content)
    assert costs_of(torch.device("cpu"), torch.float32) == DEFAULT_COSTS  # what the tests' own measure returns
    assert json.loads((folder / "rates.json").read_text())


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    rates._costs_of.cache_clear()
    assert costs_of(torch.device("cpu"), torch.float32) == DEFAULT_COSTS
    rates._costs_of.cache_clear()


def test_nothing_is_measured_where_results_must_not_change(folder, monkeypatch):
    monkeypatch.setattr(rates.torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert costs_of(torch.device("cpu"), torch.float32) is DEFAULT_COSTS
    assert costs_of(torch.device("meta"), torch.float32) is DEFAULT_COSTS
    assert not folder.exists()
