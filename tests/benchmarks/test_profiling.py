"""Where the time goes: parts that hide nothing, and functions that are left as they were. No time is asserted."""

import dataclasses
import json

import pytest
import torch
from benchmarks.contestants import contestants, quiet
from benchmarks.registry import BY_NAME

from benchmarks import __main__ as command
from benchmarks import profiling, stages

IN_EVERY_STEP = {stages.FORWARD, stages.BACKWARD, stages.OPTIMIZER}


def made(name, place, noise=1.0):
    case = BY_NAME[name]
    return contestants(None, ("auto",))[place](case, noise, dict(case.tiny))


class Hours:
    """A clock that is told the time."""

    def __init__(self, *times):
        self.times = list(times)

    def __call__(self):
        return self.times.pop(0)


def test_parts_do_not_count_what_runs_within_them():
    watch = stages.Stopwatch(Hours(0, 1, 3, 7, 10, 12, 100, 105))
    with watch.span("outer"):
        with watch.span("inner"), watch.span("inner"):
            pass
        with pytest.raises(ZeroDivisionError), watch.span("other"):
            raise ZeroDivisionError
    assert watch.seconds == {"outer": 1 + 2 + 5, "inner": 2 + 4 + 3, "other": 88}


@pytest.mark.parametrize("name", ["mlp", "encoder", "resnet", "lstm", "embedding", "gpt2"])
def test_parts_of_a_private_step(name):
    with quiet():
        contestant = made(name, 1)
        seconds = profiling.timed_step(contestant)
    assert IN_EVERY_STEP < set(seconds) <= set(stages.STAGES)
    assert {stages.NORMS, stages.SUMS, stages.CHECKS, stages.NOISE, stages.RELEASE} < set(seconds)
    assert min(seconds.values()) > 0
    assert stages.FORMED in seconds or name != "resnet"


def test_parts_of_a_plain_step():
    assert set(profiling.timed_step(made("mlp", 0))) == IN_EVERY_STEP


def test_functions_are_left_as_they_were():
    before = [getattr(owner, name) for owner, name, _ in stages._WATCHED]
    with pytest.raises(ZeroDivisionError), stages.watched(stages.Stopwatch().span):
        raise ZeroDivisionError
    assert [getattr(owner, name) for owner, name, _ in stages._WATCHED] == before


def test_a_watched_step_is_the_same_step():
    watched, unwatched = made("encoder", 1, noise=0.0), made("encoder", 1, noise=0.0)
    for _ in range(2):
        profiling.timed_step(watched)
        unwatched.step(unwatched.draw())
    for left, right in zip(watched.model.parameters(), unwatched.model.parameters(), strict=True):
        torch.testing.assert_close(left, right)


class Event:
    """An event of the profiler."""

    def __init__(self, name, length, *children):
        self.name, self.cpu_children = name, children
        self.time_range = self
        self.length = length

    def elapsed_us(self):
        return self.length


def test_shares_count_outermost_operators_in_their_own_part():
    norms = Event(profiling.PREFIX + stages.NORMS, 40, Event("aten::bmm", 10))
    node = Event("LinearFunctionBackward", 80, Event("aten::mm", 15, Event("aten::copy_", 5)), norms)
    backward = Event(profiling.PREFIX + stages.BACKWARD, 100, node)
    shares = profiling.shares_of(Event(profiling.PREFIX + profiling.WHOLE, 120, backward))
    assert shares == {stages.BACKWARD: pytest.approx(1 - 15 / 60), stages.NORMS: pytest.approx(1 - 10 / 40)}


@pytest.mark.parametrize("place", [0, 1])
def test_shares_of_a_real_step(place):
    with quiet():
        contestant = made("encoder", place)
        contestant.step(contestant.draw())
        shares = profiling.python_shares(contestant)
    assert set(shares) >= IN_EVERY_STEP
    assert all(0 <= share <= 1 for share in shares.values())


def test_profile_prints_a_table_and_keeps_records(tmp_path, capsys, monkeypatch):
    case = BY_NAME["mlp"]
    monkeypatch.setitem(BY_NAME, "mlp", dataclasses.replace(case, sizes={**case.sizes, **case.tiny}))
    assert command.main(["profile", "--case", "mlp", "--out", str(tmp_path)]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[1] for row in rows[2:]] == ["step", *stages.STAGES.values()]
    assert {len(row) for row in rows} == {6}
    (path,) = tmp_path.iterdir()
    plain, private = map(json.loads, path.read_text().splitlines())
    assert (plain["contestant"], private["contestant"]) == ("plain", "tacit auto")
    assert set(plain["profile"]["parts"]) < set(private["profile"]["parts"])
