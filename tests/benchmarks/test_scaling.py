"""The scaling study: what it fits, and what it puts beside. No time is asserted."""

import dataclasses
import json
import math

import pytest
import torch
from benchmarks.measure import Measurement, Timing
from benchmarks.studies import STUDIES, stack_theory, tied_theory
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as command
from benchmarks import scaling

TINY = {"batch": 2, "positions": 3, "inputs": 4, "outputs": 5, "layers": 2, "vocabulary": 7, "width": 4}
every_study = pytest.mark.parametrize("name", list(STUDIES))


def tiny(study):
    sizes = {name: TINY[name] for name in study.case.sizes}
    return dataclasses.replace(study, case=dataclasses.replace(study.case, sizes=sizes), values=(2, 4))


@pytest.mark.parametrize("power", [0, 0.5, 1, 2])
def test_slope_of_a_power_law(power):
    values = [1, 2, 4, 8]
    assert scaling.slope(values, [3 * value**power for value in values]) == pytest.approx(power, abs=1e-12)


def test_no_slope_of_what_is_not_positive():
    assert math.isnan(scaling.slope([1, 2], [1.0, 0.0]))


@every_study
def test_plain_arithmetic_is_proportional(name):
    study = STUDIES[name]
    operations = [study.theory_at(value).operations for value in study.values]
    assert scaling.slope(study.values, operations) == pytest.approx(1, abs=0.1)


@every_study
def test_each_value_doubles_one_size(name):
    study = STUDIES[name]
    assert all(after == 2 * before for before, after in zip(study.values, study.values[1:], strict=False))
    model, _ = tiny(study).at(4).make()
    assert study.theory_at(4).parameters > 0
    larger, _ = tiny(study).at(8).make()
    grown = [a.shape != b.shape for a, b in zip(model.parameters(), larger.parameters(), strict=False)]
    more = len(list(larger.parameters())) > len(list(model.parameters()))
    assert (any(grown) or more) == (name not in ("B", "T"))


def test_operations_are_those_that_torch_counts():
    study = tiny(STUDIES["layers"])
    model, data = study.case.make()
    with FlopCounterMode(display=False) as counter:
        model.layers[1](torch.relu(model.layers[0](data.tensors[0]))).sum().backward()
    assert counter.get_total_flops() == stack_theory(**study.case.sizes).operations


def test_arithmetic_of_the_clip():
    whole = stack_theory(4, 128, 64, 64, 1)
    assert (whole.form, whole.clip_operations) == ("whole", 0)
    gram = stack_theory(4, 32, 512, 512, 2)
    assert (gram.form, gram.clip_bytes) == ("Gram", 0)
    assert gram.clip_operations == 2 * 2 * 4 * 32**2 * 1024
    # At the edge, T·(d + p) = d·p, half of the Gram matrices are a sixth of 6·B·T·d·p.
    edge = tied_theory(1, 256, 512, 512)
    assert edge.clip_operations / 2 == edge.operations / 2 / 6


def test_each_size_is_compared_with_its_own_plain_step():
    measured = scaling.run(tiny(STUDIES["B"]), 3, 0.0)
    assert list(measured) == [2, 4]
    for plain, *others in measured.values():
        assert plain.ratios == (1, 1, 1)
        for each in others:
            pairs = zip(each.rounds, plain.rounds, strict=True)
            assert each.ratios == tuple(own.step / other.step for own, other in pairs)


def test_points_are_differences_within_rounds():
    def times(*seconds, ratios=(1, 1, 1)):
        return Measurement("", 1, tuple(Timing(each, 0) for each in seconds), ratios)

    study = STUDIES["B"]
    plain, private, silent = times(1, 4, 2), times(4, 9, 6, ratios=(4, 2.25, 3)), times(3, 5, 4, ratios=(3, 1.25, 2))
    point = scaling.point(study, 8, [plain, private, silent])
    assert (point.plain, point.private) == (2, 6)
    assert (point.clip, point.noise) == (2, 2)  # of 2, 1, 2 and of 1, 4, 2
    assert (point.ratio, point.quiet_ratio) == (3, 2)


def test_scaling_prints_tables_and_keeps_records(tmp_path, capsys, monkeypatch):
    for name, study in STUDIES.items():
        monkeypatch.setitem(STUDIES, name, tiny(study))
    monkeypatch.setattr(scaling, "ROUND_SECONDS", 0.0)
    assert command.main(["scaling", "--dimension", "V", "layers", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "| V (vocabulary, tied) | 2–4 |" in output
    assert "| layers | 2–4 |" in output
    assert "| V | 2 | Gram |" in output
    (path,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    expected = [(s, v, n) for s in ("V", "layers") for v in (2, 4) for n in scaling.NAMES]
    assert [(line["study"], line["value"], line["contestant"]) for line in lines] == expected
    assert [line["sizes"]["vocabulary"] for line in lines[:6:3]] == [2, 4]
