"""The memory that a plan tells, against what is alive in a step, and against FSDP2's own shards."""

import pytest
import torch
from tests.scaling.fake import fake_group, sharded
from tests.scaling.live import Live
from tests.scaling.small import SIZES, of_module, outputs_and_loss, private, real, surveyed
from torch import nn

from tacit.scaling.forecast import Forecast
from tacit.scaling.memory import root_and_blocks, state
from tacit.scaling.setting import Mode, Optimizer, Setting, Sharding
from tacit.uses import DEFAULT_COSTS

MODES = ["plain", "auto", "ghost", "per_layer"]


def alive(name, mode, checkpointing, *, half=False):
    """Most bytes alive in a forward and a backward, beside the parameters."""
    model, ids = real(name, checkpointing=checkpointing)
    criterion = None
    if mode != "plain":
        _, ids, criterion = private(model, ids, mode)
    live = Live()
    live.ignore(*model.parameters(), *model.buffers(), ids)
    with live:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            _outputs, loss = outputs_and_loss(model, ids, criterion)
        loss.backward()
    return live.peak


@pytest.mark.choice
@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "checkpointed"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llama", "long", "gpt2"])
def test_the_most_that_is_alive(name, mode, checkpointing):
    setting = Setting(1, mode=Mode(mode), optimizer=Optimizer.sgd, checkpointing=checkpointing)
    survey = surveyed(name)
    estimate = Forecast(survey, setting, DEFAULT_COSTS).estimate
    beside = estimate.total - estimate.state["parameters"]
    assert 0.9 < beside / alive(name, mode, checkpointing) < 1.7


@pytest.mark.filterwarnings("ignore:the model computes in low precision")
@pytest.mark.choice
@pytest.mark.parametrize("mode", MODES)
def test_under_autocast(mode):
    setting = Setting(1, mode=Mode(mode), optimizer=Optimizer.sgd)
    estimate = Forecast(surveyed("gpt2", torch.bfloat16), setting, DEFAULT_COSTS).estimate
    assert 0.85 < (estimate.total - estimate.state["parameters"]) / alive("gpt2", mode, False, half=True) < 1.5


def test_what_is_there_in_each_step():
    survey = of_module(nn.Linear(6, 5), 3, 6)
    one = state(survey, Setting(1))
    assert one == {"parameters": 35 * 4, "gradients": 35 * 4, "optimizer state": 35 * 8}
    assert state(survey, Setting(1, optimizer=Optimizer.sgd))["optimizer state"] == 0
    assert state(survey, Setting(2)) == one | {"DDP's buckets": 35 * 4}
    assert state(survey, Setting(1, Sharding.fsdp)) == one


def test_frozen_parameters_have_neither_gradient_nor_state():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    model[0].requires_grad_(False)
    found = state(of_module(model, 3, 6), Setting(1))
    assert found == {"parameters": (35 + 24) * 4, "gradients": 24 * 4, "optimizer state": 24 * 8}


def test_half_precision_copies_weights_or_gathers_halves():
    survey = surveyed("llama", torch.bfloat16)
    numbers = survey.numbers
    assert state(survey, Setting(1))["copies of weights that autocast makes"] == 2 * numbers
    root, blocks = root_and_blocks(survey)
    assert root == (2 * 1000 + 1) * 128
    assert root + sum(blocks) == numbers
    gathered = state(survey, Setting(2, Sharding.fsdp))["parameters gathered for the moment"]
    assert gathered == 2 * (root + 2 * max(blocks))


def test_sums_of_full_size():
    survey, largest = surveyed("llama"), 1000 * 128
    name = "one clipped sum of full size"
    for mode in (Mode.auto, Mode.ghost, Mode.per_layer):
        assert state(survey, Setting(4, Sharding.fsdp, mode))[name] == 4 * largest
        assert name not in state(survey, Setting(4, mode=mode))


@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("name", ["llama", "equal"])
def test_shards_are_those_of_fsdp2(name, processes):
    with fake_group(processes):
        model = sharded(SIZES[name][0], processes)
        shard = sum(p.to_local().numel() for p in model.parameters())
    found = state(surveyed(name), Setting(processes, Sharding.fsdp))
    assert found["parameters"] == found["gradients"] == 4 * shard
