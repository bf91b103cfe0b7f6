"""Pairs in processes of their own. No time is asserted."""

from benchmarks.alone import Trial
from benchmarks.registry import BY_NAME

from benchmarks import alone, contestants, run


def test_each_is_measured_with_its_own_plain_in_a_fresh_process():
    case = BY_NAME["convnet"]
    trial = Trial("convnet", None, ("auto", "hooks"), "cpu", 3, 0.0, dict(case.tiny))
    measured = run.run_case(case, contestants.contestants(None, trial.modes), trial)
    assert [each.name for each in measured] == ["plain", "tacit auto", "tacit hooks"]
    assert [len(each.rounds) for each in measured] == [3, 3, 3]
    assert measured[0].ratios == (1.0, 1.0, 1.0)
    assert measured[1].ratios != measured[2].ratios


def test_a_pair_of_which_one_cannot_take_part(monkeypatch):
    monkeypatch.setattr(alone, "contestants", lambda *_: [contestants.contestants(None)[0], lambda *_: None])
    trial = Trial("mlp", "opacus", (), "cpu", 3, 0.0, dict(BY_NAME["mlp"].tiny))
    assert [each.name for each in alone.pair(trial, 1)] == ["plain"]
