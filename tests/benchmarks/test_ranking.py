"""Shapes at random, and what is said of predictions."""

from benchmarks.ranking import Ranked, drawn, summary

from benchmarks import __main__ as command
from benchmarks import ranking
from tacit.uses import Product


def test_shapes_follow_their_seed_and_are_not_too_large():
    assert drawn(20, 1) == drawn(20, 1) != drawn(20, 2)
    for product in drawn(50, 3):
        assert product.whole <= 4 * 2**26
        assert product.samples * product.positions**2 <= 2**26


def test_what_is_said_of_predictions():
    right = Ranked(Product(2, 3, 4, 5), {"gram": 1.0, "stored": 2.0}, {"gram": 3.0, "stored": 4.0})
    close = Ranked(Product(2, 3, 4, 5), {"gram": 1.0, "stored": 2.0}, {"gram": 3.1, "stored": 3.0})
    wrong = Ranked(Product(2, 3, 4, 5), {"gram": 1.0, "stored": 2.0}, {"gram": 6.0, "stored": 3.0})
    said = summary([right, right, close, wrong])
    assert "on 50%" in said
    assert "on 75%" in said
    assert wrong.lost == 2.0


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ranking, "drawn", lambda count, seed: [Product(2, 3, 4, 5 + i) for i in range(count)])
    monkeypatch.setattr(ranking, "REPEATS", 1)
    assert command.main(["ranking", "--shapes", "2", "--out", str(tmp_path)]) == 0
    assert "| 2, 3, 4, 6 |" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.jsonl")
    assert len(path.read_text().splitlines()) == 2
