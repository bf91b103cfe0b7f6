import json

import pytest
from tests.commands.invoke import AT, RATES, SIZES, refused, run

from tacit.accounting import epsilon

TARGET = ["--epsilon", "3", *AT]
NOISE = ["--noise-multiplier", "1"]


def found(*arguments):
    return json.loads(run("calibrate", *TARGET, *arguments, "--json"))["result"]


def spent(rate, steps, noise=1.0, **rest):
    return epsilon(noise_multiplier=noise, sample_rate=rate, steps=steps, delta=1e-5, **rest)


def test_noise():
    result = found(*SIZES)
    assert result["epsilon"] == spent(100 / 1050, 33, result["noise_multiplier"])
    assert 3 * (1 - 1e-3) <= result["epsilon"] <= 3
    other = found(*SIZES, "--adjacency", "replace-one")
    assert other["noise_multiplier"] > result["noise_multiplier"]


def test_steps():
    steps = found(*NOISE, "--sample-rate", "0.01")["steps"]
    assert spent(0.01, steps) <= 3 < spent(0.01, steps + 1)


def test_epochs():
    epochs = found(*NOISE, "--dataset-size", "50000", "--batch-size", "500")["epochs"]
    assert spent(0.01, 100 * epochs) <= 3 < spent(0.01, 100 * (epochs + 1))


def test_batch_size():
    size = found(*NOISE, "--dataset-size", "50000", "--epochs", "10")["batch_size"]
    assert spent(size / 50000, 10 * -(-50000 // size)) <= 3
    assert spent(1.02 * size / 50000, 10 * -(-50000 // size)) > 3
    assert found("--noise-multiplier", "50", "--dataset-size", "1000", "--steps", "10")["batch_size"] == 1000


def test_sample_rate():
    rate = found(*NOISE, "--steps", "1000")["sample_rate"]
    assert spent(rate, 1000) <= 3 < spent(rate * 1.001, 1000)
    assert found("--noise-multiplier", "50", "--steps", "10")["sample_rate"] == 1.0


def test_text_stays_within():
    text = run("calibrate", *TARGET, *NOISE, "--steps", "1000")
    assert text.startswith("sample rate = 0.0")
    assert spent(float(text.split()[3]), 1000) <= 3
    assert run("calibrate", *TARGET, *NOISE, "--sample-rate", "0.01").startswith("steps = ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*NOISE, *RATES], "nothing is left out"),
        (["--sample-rate", "0.01"], "noise_multiplier, steps are left out"),
        (["--noise-multiplier", "0.3", "--sample-rate", "0.5"], "costs more than epsilon 3"),
        (["--noise-multiplier", "0.05", "--steps", "100000000"], "costs more than epsilon 3"),
        ([*NOISE, *SIZES, "--sample-rate", "0.5"], "in two ways"),
    ],
)
def test_refusals(monkeypatch, capsys, arguments, message):
    assert message in refused(monkeypatch, capsys, "calibrate", *TARGET, *arguments)
