"""Run a command as a user does."""

import sys

import pytest
from typer.testing import CliRunner

from tacit import cli

RATES = ["--sample-rate", "0.01", "--steps", "1000"]
SIZES = ["--dataset-size", "1050", "--batch-size", "100", "--epochs", "3"]
AT = ["--delta", "1e-5"]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a bad argument leaves on stderr."""
    monkeypatch.setattr(sys, "argv", ["tacit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("tacit: ")
    assert captured.err.count("\n") == 1
    return captured.err
