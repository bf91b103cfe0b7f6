import json

import pytest
from tests.commands.invoke import AT, RATES, SIZES, refused, run

from tacit.accounting import epsilon

NOISE = ["--noise-multiplier", "1"]


def found(over, *arguments):
    report = json.loads(run("curve", "--over", over, *NOISE, *arguments, *AT, "--points", 4, "--json"))
    assert report["over"] == over.replace("-", "_")
    return [(row[report["over"]], row["epsilon"]) for row in report["curve"]]


def test_over_steps():
    curve = found("steps", *RATES)
    assert [steps for steps, _ in curve] == [250, 500, 750, 1000]
    for steps, spent in curve:
        assert spent == epsilon(noise_multiplier=1, sample_rate=0.01, steps=steps, delta=1e-5)


@pytest.mark.parametrize(
    ("over", "arguments", "values", "grows"),
    [
        ("noise-multiplier", RATES, [0.25, 0.25 * 16 ** (1 / 3), 0.25 * 16 ** (2 / 3), 4.0], False),
        ("batch-size", SIZES, [25, 63, 159, 400], True),
        ("sample-rate", RATES, [0.0025, 0.0025 * 16 ** (1 / 3), 0.0025 * 16 ** (2 / 3), 0.04], True),
        ("epochs", SIZES, [1, 2, 3], True),
    ],
)
def test_over_others(over, arguments, values, grows):
    curve = found(over, *arguments)
    assert [value for value, _ in curve] == pytest.approx(values)
    spent = [eps for _, eps in curve]
    assert spent == sorted(spent, reverse=not grows)


def test_from_and_to():
    arguments = ["--dataset-size", "1000", "--epochs", "2", "--from", "10", "--to", "5000"]
    assert [size for size, _ in found("batch-size", *arguments)] == [10, 46, 215, 1000]


def test_in_the_terminal():
    lines = run("curve", "--over", "steps", *NOISE, *RATES, *AT, "--points", 3).splitlines()
    assert lines[0] == "epsilon at delta = 1e-05 over steps (pld, add-or-remove-one, Poisson sampling)"
    assert len(lines) == 4
    assert [line.count("█") for line in lines[1:]] == sorted(line.count("█") for line in lines[1:])
    assert lines[-1].count("█") == 50


def test_as_a_file(tmp_path, monkeypatch, capsys):
    file = tmp_path / "curve.png"
    text = run("curve", "--over", "noise-multiplier", *NOISE, *RATES, *AT, "--points", 3, "--png", file)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert str(file) in text
    missing = tmp_path / "no" / "curve.png"
    arguments = ["curve", "--over", "steps", *NOISE, *RATES, *AT, "--points", 2, "--png", missing]
    assert "cannot be written" in refused(monkeypatch, capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--over", "steps", *NOISE, "--sample-rate", "0.1"], "pass it, or --from and --to"),
        (["--over", "steps", *NOISE, *RATES, "--from", "2000"], "not above 0 and below"),
        (["--over", "steps", *RATES], "unknown without --noise-multiplier"),
    ],
)
def test_refusals(monkeypatch, capsys, arguments, message):
    assert message in refused(monkeypatch, capsys, "curve", *arguments, *AT)
