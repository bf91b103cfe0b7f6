"""The forms that a plan tells are those that the engine takes, and hold as much."""

import math

import pytest
import torch
from tests.scaling.small import loss_of, of_module, private, real, surveyed
from torch import nn

from tacit.scaling.forms import distinct, formed, kinds
from tacit.uses import DEFAULT_COSTS, TUNER, CostModel

STORED = CostModel(flops_per_second=1.0)  # arithmetic is dear
GRAM = CostModel(near_bytes_per_second=1.0, far_bytes_per_second=1.0)


@pytest.mark.choice
@pytest.mark.parametrize("name", ["llama", "long", "gpt2", "equal"])
def test_as_the_engine_explains(name):
    model, ids = real(name)
    engine, ids, _ = private(model, ids, "auto")
    loss_of(model, ids).backward()
    uses = formed(surveyed(name), DEFAULT_COSTS)
    for told, planned in zip(engine.explain().parameters, uses, strict=True):
        assert (told.name, told.shape) == (planned.name, tuple(planned.shape))
        assert (told.strategy, told.held) == (planned.strategy, planned.held)
        assert told.predicted == pytest.approx({form: 1e3 * s for form, s in planned.seconds.items()})


@pytest.mark.filterwarnings("ignore:the model computes in low precision")
@pytest.mark.choice
def test_under_autocast():
    model, ids = real("llama")
    engine, ids, _ = private(model, ids, "auto")
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, ids)
    loss.backward()
    uses = formed(surveyed("llama", torch.bfloat16), DEFAULT_COSTS)
    for told, planned in zip(engine.explain().parameters, uses, strict=True):
        assert told.strategy == planned.strategy
        if len(told.shape) == 2 and "embed" not in told.name:
            assert told.held == planned.held
        else:  # autocast leaves normalizations and embeddings in float32
            assert planned.held < told.held <= 2 * planned.held


@pytest.mark.choice
@pytest.mark.parametrize("name", ["llama", "long", "equal"])
def test_bytes_are_announced_as_the_forward_does(name):
    model, ids = real(name)
    engine, ids, _ = private(model, ids, "auto")
    loss = loss_of(model, ids)
    assert engine._attached.session.open_pass[0].room.expected == surveyed(name).expected
    loss.backward()


@pytest.mark.choice
def test_rates_decide():
    survey = of_module(nn.Linear(60, 50), 3, 4, 60)
    for costs, how, held in ((STORED, "whole", 3 * 3000 * 4), (GRAM, "Gram", 3 * 4 * 110 * 4)):
        weight, bias = formed(survey, costs)
        assert weight.strategy.startswith(how)
        assert weight.held == held
        assert bias.held == 3 * 50 * 4


@pytest.mark.choice
def test_a_limit_takes_the_form_that_holds_least():
    survey = of_module(nn.Linear(60, 50), 3, 4, 60)  # factors are smaller
    assert survey.expected == 3 * 4 * 110 * 4
    for limit, how in ((math.inf, "whole"), (3 * 3000 * 4, "whole"), (3 * 3000 * 4 - 1, "Gram")):
        weight, _ = formed(survey, STORED, limit=limit)
        assert weight.strategy.startswith(how), limit
    weight, _ = formed(survey, STORED, limit=3 * 3000 * 4, each=True)
    assert weight.strategy.startswith("whole")


def test_all_dimensions_alike():
    survey = of_module(nn.Linear(4, 4), 4, 4, 4)
    with TUNER.forced("gram"):
        weight, bias = formed(survey, DEFAULT_COSTS)
    assert weight.held == 4 * 4 * 8 * 4
    assert bias.held == 4 * 4 * 4


def test_what_uses_share_is_counted_once():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 5, bias=False), nn.Linear(6, 5, bias=False)

        def forward(self, x):
            return (self.first(x) + self.second(x)).square()

    survey = of_module(Both(), 3, 4, 6)
    with TUNER.forced("gram"):
        uses = formed(survey, DEFAULT_COSTS)
    assert sum(one.held for one in uses) == 2 * 3 * 4 * 11 * 4
    assert distinct(part for one in uses for part in one.parts) == 3 * 4 * 11 * 4  # inputs and output gradients


@pytest.mark.choice
def test_kinds_of_layers():
    found = {kind.pattern: kind for kind in kinds(formed(surveyed("llama"), DEFAULT_COSTS))}
    assert len(found) == 12
    assert found["model.layers.*.mlp.up_proj.weight"].count == 4
    assert found["model.layers.*.mlp.up_proj.weight"].shape == (352, 128)
    assert found["lm_head.weight"].count == 1
    one = formed(surveyed("llama"), DEFAULT_COSTS)
    assert sum(kind.held for kind in found.values()) == sum(each.held for each in one)


def test_convolutions_are_said_to_be_timed():
    weight, _ = formed(of_module(nn.Conv1d(3, 4, 2), 5, 3, 7), DEFAULT_COSTS)
    assert weight.strategy.startswith("timed in the first step; counted as")
    assert weight.shape == torch.Size((4, 3, 2))
