import json

import pytest
from tests.commands.invoke import AT, RATES, SIZES, refused, run

from tacit.accounting import PoissonRelease, epsilon, epsilon_interval, search_epsilon

NOISE = ["--noise-multiplier", "1"]


def found(*arguments):
    return json.loads(run("epsilon", *arguments, *AT, "--json"))


def test_other_neighbours():
    report = found(*NOISE, *RATES, "--adjacency", "replace-one")
    expected = epsilon(noise_multiplier=1, sample_rate=0.01, steps=1000, delta=1e-5, adjacency="replace-one")
    assert report["result"]["epsilon"] == expected
    assert report["adjacency"] == "replace-one"
    assert "replace-one" in run("epsilon", *NOISE, *RATES, *AT, "--adjacency", "replace-one")


def test_a_group():
    report = found(*NOISE, *RATES, "--group", 3)
    expected = epsilon_interval(noise_multiplier=1, sample_rate=0.01, steps=1000, delta=1e-5, group=3)
    assert report["result"]["epsilon"] == expected.upper
    assert report["inputs"]["group"] == 3
    assert "for 3 records together" in run("epsilon", *NOISE, *RATES, *AT, "--group", 3)


def test_a_search():
    report = found(*NOISE, *RATES, "--search-runs", 20)
    assert report["result"]["epsilon"] == search_epsilon([(PoissonRelease(1.0, 0.01), 1000)], 1e-5, mean_runs=20)
    assert report["accountant"] == "rdp"
    assert "best of 20 runs on average" in run("epsilon", *NOISE, *RATES, *AT, "--search-runs", 20)


def test_steps_with_sizes():
    sizes = ["--dataset-size", "1050", "--batch-size", "100", "--steps", "33"]
    assert found(*NOISE, *sizes)["result"] == found(*NOISE, *SIZES)["result"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*NOISE, *SIZES, "--steps", "5"], "--epochs and --steps both"),
        ([*NOISE, "--dataset-size", "10", "--batch-size", "11", "--epochs", "1"], "does not fit"),
        ([*NOISE, "--batch-size", "11", "--epochs", "1"], "in half of one"),
        ([*NOISE, "--dataset-size", "10", "--epochs", "1"], "unknown without --batch-size"),
        ([*NOISE, *RATES, "--adjacency", "swap"], "adjacency is 'swap'"),
        ([*NOISE, *RATES, "--search-runs", "1"], "more than one run"),
        ([*NOISE, *RATES, "--search-runs", "9", "--group", "2"], "leave one out"),
        ([*NOISE, *RATES, "--group", "0"], "group is 0"),
    ],
)
def test_refusals(monkeypatch, capsys, arguments, message):
    assert message in refused(monkeypatch, capsys, "epsilon", *arguments, *AT)
