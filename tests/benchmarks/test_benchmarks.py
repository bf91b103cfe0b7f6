"""The benchmark harness: what it times, in which order, and what it makes of the times. No time is asserted."""

import dataclasses
import importlib.util
import json

import pytest
import torch
from benchmarks.cases import CASES
from benchmarks.contestants import quiet
from benchmarks.long_cases import MLP_BATCHES
from benchmarks.measure import Measurement, Timing, measure
from benchmarks.registry import BY_NAME, GROUPS

from benchmarks import contestants, records, table

needs_opacus = pytest.mark.skipif(importlib.util.find_spec("opacus") is None, reason="opacus is not installed")
SAME_WHEN_TINY = {f"mlp-{batch}" for batch in MLP_BATCHES}
every_case = pytest.mark.parametrize(
    "case", [case for case in BY_NAME.values() if case.name not in SAME_WHEN_TINY], ids=lambda case: case.name
)


class Weather:
    """A clock that goes only when someone works."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now


class Worker:
    """Takes the given seconds per step, one number a round; drawing takes a second."""

    def __init__(self, name, weather, *seconds):
        self.name = name
        self.weather = weather
        self.seconds = list(seconds)
        self.round = -1  # the warm-up

    def draw(self):
        self.weather.now += 1.0
        return "batch"

    def step(self, batch):
        assert batch == "batch"
        self.weather.log.append(self.name)
        self.weather.now += self.seconds[max(self.round, 0)]

    def rest(self):
        self.weather.log.append("/")
        self.round += 1


def tiny(case):
    return dataclasses.replace(case, sizes={**case.sizes, **case.tiny})


def parameters_after(contestant, steps=1):
    for _ in range(steps):
        contestant.step(contestant.draw())
    return [p.detach().clone() for p in contestant.model.parameters() if p.requires_grad]


def measurement(*ratios, steps=4):
    return Measurement("tacit auto", steps, tuple(Timing(r / 100, 0.0005) for r in ratios), ratios)


def test_contestants_alternate_after_the_warm_up():
    weather = Weather()
    measure([Worker("a", weather, 1, 1, 1), Worker("b", weather, 2, 2, 2)], rounds=3, round_seconds=2, clock=weather)
    # One step that does not count, then as many as fill a round.
    warm_up = ["a", "a", "a", "/", "b", "b", "/"]
    assert weather.log == warm_up + ["a", "a", "/", "b", "/"] * 3


def test_rounds_begin_with_a_step_that_does_not_count():
    weather = Weather()
    workers = [Worker("a", weather, 1, 1, 1), Worker("b", weather, 2, 2, 2)]
    measured = measure(workers, rounds=3, round_seconds=2, settle=True, clock=weather)
    assert weather.log[7:] == ["a", "a", "a", "/", "b", "b", "/"] * 3
    assert [(each.steps, each.rounds[0].step) for each in measured] == [(2, 1), (1, 2)]


def test_ratio_is_the_median_of_the_ratios_within_rounds():
    weather = Weather()
    plain, private = Worker("plain", weather, 1, 4, 2), Worker("private", weather, 6, 5, 3)
    baseline, other = measure([plain, private], rounds=3, round_seconds=0.1, clock=weather)
    assert baseline.ratios == (1, 1, 1)
    assert other.ratios == (6, 1.25, 1.5)
    assert other.ratio == 1.5  # the ratio of the medians is 5 / 2, that of the means 2
    assert other.milliseconds == 5000
    assert other.draw_milliseconds == 1000  # outside the steps


def test_ratios_follow_the_weather_of_their_round():
    weather = Weather()
    plain, private = Worker("plain", weather, 1, 4, 2), Worker("private", weather, 2, 8, 4)
    _, other = measure([plain, private], rounds=3, round_seconds=0.1, clock=weather)
    assert other.ratios == (2, 2, 2)


def test_too_few_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds=2"):
        measure([], rounds=2)


def test_table():
    lines = table.markdown({"mlp": [measurement(1.0, 1.0, 1.0), measurement(2.0, 1.5, 1.75)]}).splitlines()
    assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| mlp | tacit auto | 10.0 | 1.00 | 1.00–1.00 | 3 × 4 | 0.50 |"
    assert lines[3] == "|  | tacit auto | 17.5 | 1.75 | 1.50–2.00 | 3 × 4 | 0.50 |"
    assert {line.count("|") for line in lines} == {8}


@pytest.mark.parametrize(("value", "text"), [(0.123, "0.12"), (12.34, "12.3"), (1234.5, "1234")])
def test_digits(value, text):
    assert table.digits(value) == text


def test_records_are_json_lines(tmp_path):
    path = records.new_file(tmp_path / "new")
    each = records.record(CASES[0], measurement(2.0, 1.5, 1.75), records.environment())
    records.append(path, [each])
    records.append(path, [each])
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == second
    assert first["ratios"] == [2.0, 1.5, 1.75]
    assert first["ms_per_step"] == pytest.approx([20, 15, 17.5])
    assert first["torch"] == torch.__version__
    assert first["threads"] == torch.get_num_threads()
    assert first["case"] == "mlp"


@every_case
def test_cases_are_the_same_at_every_call(case):
    before = torch.get_rng_state()
    (one, first), (two, second) = case.make(**case.tiny), case.make(**case.tiny)
    assert torch.equal(before, torch.get_rng_state())
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(left, right)
    assert torch.equal(first.tensors[0], second.tensors[0])
    assert len(first) == case.tiny["batch"]


@every_case
@pytest.mark.parametrize("against", [None, pytest.param("opacus", marks=needs_opacus)])
def test_private_contestants_take_the_same_step(case, against):
    """Without noise all must agree, or they would be compared at different work."""
    with quiet():
        plain, *private = [make(case, 0.0, dict(case.tiny)) for make in contestants.contestants(against)]
        before = [p.detach().clone() for p in plain.model.parameters() if p.requires_grad]
        plainly = torch.cat([p.flatten() for p in parameters_after(plain)])
        first, *others = [torch.cat([p.flatten() for p in parameters_after(each)]) for each in private]
    started = torch.cat([p.flatten() for p in before])
    assert not torch.equal(first, started)
    # Something was clipped; adapters and a tiny BERT begin with short gradients.
    assert case.name in ("gpt2-lora", "bert") or not torch.allclose(first - started, plainly - started, rtol=1e-2)
    for contestant, other in zip(private[1:], others, strict=True):
        # Updates are differences of numbers near 1 in float32.
        torch.testing.assert_close(other - started, first - started, rtol=1e-3, atol=3e-7, msg=contestant.name)


@every_case
def test_private_steps_release_noise(case):
    for make in contestants.tacit_contestants():
        quietly, noisily = make(case, 0.0, dict(case.tiny)), make(case, 1.0, dict(case.tiny))
        pairs = zip(parameters_after(quietly, 2), parameters_after(noisily, 2), strict=True)
        assert all(not torch.equal(left, right) for left, right in pairs)


@every_case
def test_rest_frees_gradients(case):
    hooks = contestants.tacit_contestants()[2](case, 1.0, dict(case.tiny))
    parameters_after(hooks)
    assert hooks.name == "tacit hooks"
    assert all(p.grad is not None for p in hooks.model.parameters() if p.requires_grad)
    hooks.rest()
    assert all(p.grad is None and "grad_sample" not in p.__dict__ for p in hooks.model.parameters())
    parameters_after(hooks)


def test_names_are_unique():
    assert len(BY_NAME) == sum(map(len, GROUPS.values()))


def test_convolutions_are_timed_alone_with_plain():
    convolutions = {
        name
        for name, case in BY_NAME.items()
        if any(isinstance(module, torch.nn.Conv2d) for module in case.make(**case.tiny)[0].modules())
    }
    assert {name for name, case in BY_NAME.items() if case.alone} == convolutions
