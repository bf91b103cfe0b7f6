"""The command `tacit demo`: its last line, and every failure in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tacit import cli

TINY = ("--epochs", "1", "--batch-size", "720")


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["tacit", "demo", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_prints_the_result_last(monkeypatch, capsys, tmp_path):
    code, out, _ = call(monkeypatch, capsys, *TINY, "--out", tmp_path / "a b")
    assert not code
    lines = out.splitlines()
    assert lines[-1].startswith("test accuracy 0.")
    assert lines[-1].endswith(", delta 1e-04")
    assert Path(lines[0].removeprefix("report: ")).is_file()
    code, _, err = call(monkeypatch, capsys, "--resume", "--epochs", 2, "--out", tmp_path / "a b")
    assert code == 2
    assert err.count("\n") == 1
    assert "--epochs is 2" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epsilon", "-1"), "epsilon is -1.0"),
        (("--epsilon", "nan"), "epsilon is nan"),
        (("--delta", "1"), "delta is 1.0"),
        (("--epochs", "0"), "epochs is 0"),
        (("--batch-size", "1438"), "batch_size is 1438"),
        (("--batch-size", "0"), "batch_size is 0"),
        (("--max-grad-norm", "0"), "max_grad_norm is 0.0"),
        (("--seed", "-1"), "seed is -1"),
        (("--resume",), "nothing to resume"),
    ],
)
def test_bad_options_are_one_line(monkeypatch, capsys, tmp_path, arguments, message):
    code, out, err = call(monkeypatch, capsys, *arguments, "--out", tmp_path / "new")
    assert (code, out) == (2, "")
    assert err.startswith("tacit: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "new").exists()


def test_unwritable_folder_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = call(monkeypatch, capsys, *TINY, "--out", tmp_path / "file" / "below")
    assert (code, out) == (2, "")
    assert "cannot be written" in err
    assert err.count("\n") == 1


def test_interrupt_is_one_line(monkeypatch, capsys, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tacit.demo.run.train_plain", interrupted)
    code, out, err = call(monkeypatch, capsys, *TINY, "--out", tmp_path)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("tacit: interrupted after 2 of 2 steps")


def test_command_line_starts_without_torch():
    code = "import sys, tacit.cli; sys.exit(bool({'torch', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
