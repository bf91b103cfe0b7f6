"""A Llama of 8 billion parameters on 8, 64 and 512 processes, from its shapes; and ways out where it does not fit."""

import resource
from pathlib import Path

import pytest
import torch
from tests.scaling.small import surveyed

from tacit.scaling.forecast import Forecast
from tacit.scaling.memory import held, root_and_blocks
from tacit.scaling.models import build, read_config, token_loss
from tacit.scaling.setting import Mode, Setting, Sharding
from tacit.scaling.summary import advice, facts
from tacit.scaling.survey import survey
from tacit.uses import DEFAULT_COSTS

GIB = 2**30
PARAMETERS = 8_030_261_248
LLAMA_8B = Path(__file__).parents[1] / "examples" / "llama-8b.json"
LENGTH = 4096


@pytest.fixture(scope="module")
def llama():
    config = read_config(LLAMA_8B)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = build(config, torch.bfloat16)
    found = survey(model, token_loss(model, config, 1, LENGTH))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024  # KiB, much of it code
    return found


def forecast(llama, processes, mode=Mode.auto, *, memory=None, checkpointing=False):
    return Forecast(llama, Setting(processes, Sharding.fsdp, mode, checkpointing=checkpointing), DEFAULT_COSTS, memory)


def test_parameters(llama):
    assert llama.trained == llama.numbers == PARAMETERS
    root, blocks = root_and_blocks(llama)
    assert root == 2 * 128256 * 4096 + 4096
    assert set(blocks) == {2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096 + 2 * 4096}


@pytest.mark.parametrize("processes", [8, 64, 512])
def test_state_on_many_processes(llama, processes):
    state = forecast(llama, processes).estimate.state
    assert state["parameters"] == pytest.approx(4 * PARAMETERS / processes, rel=1e-3)  # 128256 rows on 512
    assert state["gradients"] == state["parameters"]
    assert state["optimizer state"] == 2 * state["parameters"]
    assert state["one clipped sum of full size"] == 4 * 128256 * 4096


@pytest.mark.parametrize("processes", [8, 64, 512])
def test_traffic_on_many_processes(llama, processes):
    gather, scatter, check = forecast(llama, processes).traffic
    root, blocks = root_and_blocks(llama)
    assert gather.handed == 2 * (root + 2 * sum(blocks)) // processes
    assert scatter.handed == 4 * PARAMETERS
    assert check.handed == 32
    assert scatter.sent == 4 * PARAMETERS * (processes - 1) // processes


@pytest.mark.choice
def test_what_is_held(llama):
    factors = 2 * LENGTH  # bytes for each number of inputs and outputs together, in bfloat16
    kinds = {kind.pattern: kind for kind in forecast(llama, 8, memory=1.0).kinds}  # no room: what holds least
    gate = kinds["model.layers.*.mlp.gate_proj.weight"]
    assert (gate.count, gate.held) == (32, 32 * factors * (4096 + 14336))
    key = kinds["model.layers.*.self_attn.k_proj.weight"]
    assert (key.count, key.held) == (32, 32 * 4 * 4096 * 1024)  # whole gradients are smaller
    assert kinds["lm_head.weight"].held == factors * (4096 + 128256)
    assert kinds["model.norm.weight"].held == 2 * 4096


def test_modes_that_hold_nothing(llama):
    assert forecast(llama, 8).held == held(forecast(llama, 8).uses) > 10 * GIB
    for mode in (Mode.ghost, Mode.per_layer):
        assert forecast(llama, 8, mode).held == 0


def test_more_processes_and_checkpointing_take_less(llama):
    for mode in Mode:
        totals = [forecast(llama, n, mode).estimate.total for n in (8, 64, 512)]
        assert totals == sorted(totals, reverse=True)
        for n in (8, 64, 512):
            saved = forecast(llama, n, mode).estimate.total
            assert forecast(llama, n, mode, checkpointing=True).estimate.total <= saved


def test_whether_it_fits(llama):
    one = forecast(llama, 8)
    assert one.fits is None
    assert advice(one) == one.ways_out()[:0] == []
    assert forecast(llama, 8, memory=80 * GIB).fits
    assert advice(forecast(llama, 8, memory=80 * GIB)) == []


@pytest.mark.choice
def test_ways_out(llama):
    tight = forecast(llama, 8, memory=44 * GIB)
    assert not tight.fits
    ways = tight.ways_out()
    assert ways
    assert all(way.fits for way in ways)
    # One change is enough, and all ways make as few.
    assert all(way.setting.processes == 8 for way in ways)
    assert any(way.setting == Setting(8, Sharding.fsdp, checkpointing=True) for way in ways)
    first, *_, batch = advice(tight)
    assert first.startswith("auto, 8 processes, FSDP, with checkpointing: ")
    assert "BatchMemoryManager" in batch
    assert "memory_budget=" in advice(Forecast(llama, Setting(1), DEFAULT_COSTS, 64 * GIB))[-1]


def test_more_processes_where_no_setting_helps(llama):
    alone = Forecast(llama, Setting(1), DEFAULT_COSTS, 64 * GIB)
    ways = alone.ways_out()
    assert {way.setting.processes for way in ways} == {4}
    assert {way.setting.sharding for way in ways} == {Sharding.fsdp}


def test_nothing_helps(llama):
    lines = advice(forecast(llama, 8, Mode.ghost, memory=GIB))
    assert lines[0].startswith("No way to train that is known here fits: ")
    assert len(lines) == 2


def test_as_plain_data(llama):
    one = forecast(llama, 64, memory=80 * GIB)
    found = facts(one)
    assert found["parameters"] == PARAMETERS
    assert found["setting"] == {"processes": 64, "sharding": "fsdp", "mode": "auto", "optimizer": "adamw"}
    assert found["checkpointing"]["without"]["total"] == one.estimate.total
    assert found["checkpointing"]["with"]["activations"] < found["checkpointing"]["without"]["activations"]
    assert found["checkpointing"]["with"]["total_without_privacy"] <= found["checkpointing"]["with"]["total"]
    assert [each["handed"] for each in found["sent"]][:-1] == [each["handed"] for each in found["sent_without_privacy"]]
    assert sum(kind["count"] for kind in found["kinds"]) == 32 * 9 + 3


def test_dimensions_that_coincide():
    found = surveyed("equal")
    one = Forecast(found, Setting(8, Sharding.fsdp), DEFAULT_COSTS)
    assert one.estimate.state["parameters"] == 4 * found.trained // 8
    assert (
        one.estimate.total
        > one.plain.estimate.total - one.plain.estimate.state["gradients of one group, before they are shared out"]
    )
