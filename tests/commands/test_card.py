import json

import pytest
from tests.commands.invoke import refused, run
from tests.small_run import make, train


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    statements = []
    for name, settings in (("one", {}), ("other", {"noise_multiplier": 2.0, "sampling": "balls-in-bins"})):
        engine, *parts = make(**settings)
        train(*parts, steps=2)
        statements.append(engine.statement(1e-3))
        (folder / f"{name}.json").write_text(statements[-1].to_json())
    (folder / "run").mkdir()
    (folder / "run" / "privacy.json").write_text(json.dumps({**statements[0].facts, "test_accuracy": 0.9}))
    return folder, statements


def test_a_statement_is_printed(cards):
    folder, (one, _) = cards
    assert run("card", folder / "one.json") == one.text + "\n"
    assert run("card", folder / "run") == one.text + "\n"
    assert run("card", folder / "one.json", "--markdown") == one.markdown + "\n"
    assert json.loads(run("card", folder / "one.json", "--json")) == one.facts


def test_what_differs(cards):
    folder, (one, other) = cards
    rows = {line.split()[0]: line for line in run("compare", folder / "one.json", folder / "other.json").splitlines()}
    assert "1" in rows["noise_multiplier"]
    assert "2" in rows["noise_multiplier"]
    assert "Balls in bins" in rows["sampling"]
    assert "max_grad_norm" not in rows
    assert "versions.torch" not in rows
    report = json.loads(run("compare", folder / "one.json", folder / "other.json", "--json"))
    assert report["epsilon_upper"] == [one.facts["epsilon_upper"], other.facts["epsilon_upper"]]
    assert run("compare", folder / "one.json", folder / "one.json") == "nothing differs\n"
    assert "test_accuracy" in run("compare", folder / "one.json", folder / "run")


def test_refusals(cards, tmp_path, monkeypatch, capsys):
    assert "cannot be read" in refused(monkeypatch, capsys, "card", tmp_path)
    file = tmp_path / "notes.txt"
    file.write_text("hello")
    assert "no privacy statement" in refused(monkeypatch, capsys, "card", file)
    file.write_bytes(b"\xff\xfe\x00")
    assert "notes.txt" in refused(monkeypatch, capsys, "compare", cards[0] / "one.json", file)
