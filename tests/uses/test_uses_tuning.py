import pytest

from tacit.uses import Tuner


def test_the_quickest_is_kept_for_its_key(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("tacit.timing.time.perf_counter", lambda: next(clock))
    calls = []

    def attempt(name, ticks):
        def run():
            calls.append(name)
            for _ in range(ticks):
                next(clock)

        return run

    tuner = Tuner()
    attempts = {"slow": attempt("slow", 5), "quick": attempt("quick", 1)}
    assert tuner.choose("a", attempts, "slow") == "quick"
    tried = len(calls)
    assert tuner.choose("a", attempts, "slow") == "quick"
    assert len(calls) == tried
    assert tuner.found["a"] == {"slow": 6000.0, "quick": 2000.0}
    assert tuner.choose("b", attempts, "slow") == "quick"
    assert len(calls) == 2 * tried


@pytest.mark.parametrize(("seconds", "calls"), [(0.001, 6), (0.1, 2)])
def test_short_attempts_are_made_more_often(monkeypatch, seconds, calls):
    now, made = [0.0], []

    def attempt():
        made.append(1)
        now[0] += seconds

    monkeypatch.setattr("tacit.timing.time.perf_counter", lambda: now[0])
    tuner = Tuner()
    tuner.measure("a", {"one": attempt})
    assert tuner.found["a"]["one"] == pytest.approx(1000 * seconds)
    assert len(made) == calls


def test_one_way_only_is_not_tried():
    def fail():
        raise AssertionError

    assert Tuner().choose("a", {"only": fail}, "other") == "only"


def test_forced_where_it_is_possible():
    tuner = Tuner()
    attempts = {"one": lambda: None, "other": lambda: None}
    with tuner.forced("other"):
        assert tuner.choose("a", attempts, "slow") == "other"
        assert tuner.choose("a", {"one": lambda: None}, "one") == "one"
    assert tuner.found == {}
    with pytest.raises(KeyError), tuner.forced("one"):
        raise KeyError
    assert tuner._forced == ()


def test_what_was_not_possible_before_is_not_chosen():
    tuner = Tuner()
    tuner.found["a"] = {"gone": 0.1, "here": 0.5}
    assert tuner.choose("a", {"here": lambda: None, "new": lambda: None}, "new") == "here"


def test_nothing_is_timed_where_results_must_not_change(monkeypatch):
    monkeypatch.setattr("tacit.uses.tuning.torch.are_deterministic_algorithms_enabled", lambda: True)
    tuner = Tuner()
    assert tuner.choose("a", {"one": lambda: None, "other": lambda: None}, "other") == "other"
    assert tuner.choose("a", {"one": lambda: None, "third": lambda: None}, "other") == "one"
    assert tuner.found == {}
