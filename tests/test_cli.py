"""The command line computes what the library does and fails in one line."""

import json
import subprocess
import sys

import pytest
from tests.commands.invoke import RATES, SIZES, refused, run

from tacit import accounting

METHOD = "certified composition"


def test_epsilon_json():
    report = json.loads(run("epsilon", "--noise-multiplier", "1.0", *RATES, "--delta", "1e-5", "--json"))
    expected = accounting.epsilon(noise_multiplier=1.0, sample_rate=0.01, steps=1000, delta=1e-5)
    assert 0.999 * expected < report["result"]["epsilon_lower"] <= expected
    assert report == {
        "inputs": {"noise_multiplier": 1.0, "delta": 1e-5, "sample_rate": 0.01, "steps": 1000},
        "result": {"epsilon": expected, "epsilon_lower": report["result"]["epsilon_lower"], "method": METHOD},
        "adjacency": "add-or-remove-one",
        "accountant": "pld",
    }


def test_sizes_instead_of_rate_and_steps():
    output = run("epsilon", "--noise-multiplier", "1", *SIZES, "--delta", "1e-5", "--accountant", "rdp", "--json")
    report = json.loads(output)
    assert report["inputs"]["steps"] == 33
    assert report["inputs"]["sample_rate"] == 100 / 1050
    assert report["inputs"]["dataset_size"] == 1050
    assert report["accountant"] == "rdp"


def test_calibrate_json_round_trip():
    report = json.loads(run("calibrate", "--epsilon", "3", "--delta", "1e-5", *RATES, "--json"))
    noise = report["result"]["noise_multiplier"]
    spent = accounting.epsilon(noise_multiplier=noise, sample_rate=0.01, steps=1000, delta=1e-5)
    assert 3 * (1 - 1e-3) <= spent <= 3
    assert report["inputs"]["epsilon"] == 3.0


def test_text_rounds_upward():
    output = run("calibrate", "--epsilon", "3", "--delta", "1e-5", *RATES, "--accountant", "prv")
    shown = float(output.split()[3])
    assert accounting.epsilon(noise_multiplier=shown, sample_rate=0.01, steps=1000, delta=1e-5) <= 3
    assert "add-or-remove-one" in output


def test_no_noise_is_infinite():
    arguments = ("epsilon", "--noise-multiplier", "0", *RATES, "--delta", "1e-5")
    assert "epsilon = inf" in run(*arguments)
    assert json.loads(run(*arguments, "--json"))["result"]["epsilon"] is None


def test_version_and_help():
    assert run("--version").startswith("tacit ")
    assert "Example" in run("epsilon", "--help")


@pytest.mark.parametrize(
    "arguments",
    [
        ["epsilon", "--noise-multiplier", "-1", *RATES, "--delta", "1e-5"],
        ["epsilon", "--noise-multiplier", "1", *RATES, "--delta", "2"],
        ["epsilon", "--noise-multiplier", "1", *RATES, *SIZES, "--delta", "1e-5"],
        ["epsilon", "--noise-multiplier", "1", "--steps", "5", "--delta", "1e-5"],
        ["calibrate", "--epsilon", "nan", *RATES, "--delta", "1e-5"],
        ["calibrate", "--epsilon", "3", *RATES, "--delta", "1e-5", "--accountant", "gdp"],
        ["calibrate", "--epsilon", "3", *SIZES[:-1], "-3", "--delta", "1e-5"],
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, monkeypatch, capsys):
    refused(monkeypatch, capsys, *arguments)


def test_module_runs_without_torch():
    arguments = ["epsilon", "--noise-multiplier", "1", *RATES, "--delta", "1e-5"]
    code = (
        "import sys, runpy\nsys.argv = ['tacit', *sys.argv[1:]]\n"
        "try:\n    runpy.run_module('tacit.cli', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("epsilon = 1.82")
