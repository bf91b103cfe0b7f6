"""The command line: which cases it runs, what it prints and what it keeps. No time is asserted."""

import dataclasses
import json

import pytest
import torch
from benchmarks.cases import CASES
from benchmarks.measure import Measurement, Timing, measure
from benchmarks.registry import BY_NAME, GROUPS, QUICK

from benchmarks import __main__ as command
from benchmarks import contestants, run


def tiny(case):
    return dataclasses.replace(case, sizes={**case.sizes, **case.tiny})


def measurement(*ratios):
    return Measurement("tacit auto", 4, tuple(Timing(r / 100, 0.0005) for r in ratios), ratios)


def test_run_prints_a_table_and_keeps_records(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "BY_NAME", {name: tiny(case) for name, case in BY_NAME.items()})
    monkeypatch.setattr(run, "measure", lambda all_, **settings: measure(all_, **{**settings, "round_seconds": 0}))
    monkeypatch.setattr(contestants.importlib.util, "find_spec", lambda _: None)
    arguments = ["run", "--case", "mlp", "encoder", "--against", "opacus", "--plot", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    output = capsys.readouterr().out
    assert "opacus is not installed: going on without it." in output
    assert "Median of 7 rounds" in output
    assert "| encoder | plain |" in output
    (path,) = tmp_path.glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = ["plain", "tacit auto", "tacit ghost", "tacit hooks"]
    assert [(line["case"], line["contestant"]) for line in lines] == [(c, n) for c in ("mlp", "encoder") for n in names]
    assert path.with_suffix(".svg").exists()


def test_quick_times_four_cases_in_mode_auto(tmp_path, monkeypatch):
    asked = []

    def run_case(case, makers, trial):
        asked.append((case.name, len(makers), trial.modes, trial.rounds))
        return [measurement(1.0, 1.0, 1.0)]

    monkeypatch.setattr(run, "run_case", run_case)
    assert command.main(["run", "--quick", "--out", str(tmp_path)]) == 0
    assert asked == [(name, 2, ("auto",), 7) for name in QUICK]


def test_peak_memory_is_on_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "run_case", lambda *_: [measurement(1.0, 1.0, 1.0)])
    monkeypatch.setattr(run.memory, "measured", lambda *_: [("plain", 80.0), ("tacit auto", 88.0)])
    assert command.main(["run", "--case", "mlp", "--memory", "--out", str(tmp_path)]) == 0
    assert "|  | tacit auto | 88 | 1.10 |" in capsys.readouterr().out
    lines = [json.loads(line) for line in next(tmp_path.iterdir()).read_text().splitlines()]
    assert [line.get("peak_megabytes") for line in lines] == [None, 80.0, 88.0]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], [case.name for case in CASES]),
        (["--group", "long"], [case.name for case in GROUPS["long"]]),
        (["--quick"], list(QUICK)),
        (["--quick", "--case", "vit", "mlp-1", "vit"], ["vit", "mlp-1"]),
    ],
)
def test_chosen_cases(arguments, names):
    given = command.parser().parse_args(["run", *arguments])
    assert [case.name for case in run.chosen(given)] == names


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--case", "none"],
        ["run", "--rounds", "6"],
        ["run", "--device", "tpu"],
        ["scaling", "--dimension", "x"],
        [],
    ],
)
def test_wrong_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert "usage" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["run", "--device", "cuda"])
    assert "cuda is not there" in capsys.readouterr().err
