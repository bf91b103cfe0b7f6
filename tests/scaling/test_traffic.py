"""Bytes that a plan tells, against those that FSDP2 hands to collectives. (DDP's: tests/benchmarks.)"""

import pytest
import torch
from tests.scaling.fake import Handed, fake_group, sharded
from tests.scaling.small import SIZES, surveyed

from tacit.scaling.setting import Mode, Setting, Sharding
from tacit.scaling.traffic import traffic


def handed(survey, *setting):
    return sum(each.handed for each in traffic(survey, Setting(*setting)))


def test_one_process_sends_nothing():
    assert traffic(surveyed("equal"), Setting(1)) == []
    assert traffic(surveyed("equal"), Setting(1, Sharding.fsdp)) == []


@pytest.mark.parametrize("half", [False, True], ids=["single", "half"])
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_fsdp2_without_privacy(processes, half):
    name = "equal"
    with fake_group(processes):
        model, counter = sharded(SIZES[name][0], processes, half=half, device="cpu"), Handed()
        with counter:
            model(input_ids=torch.zeros((8, 8), dtype=torch.int64), use_cache=False).logits.float().sum().backward()
    survey = surveyed(name, torch.bfloat16 if half else torch.float32)
    gather, scatter = traffic(survey, Setting(processes, Sharding.fsdp, Mode.plain))
    assert gather.handed == counter.bytes["allgather"]
    assert scatter.handed == counter.bytes["reduce_scatter"]


def test_what_privacy_adds():
    survey = surveyed("equal")
    for sharding, check in ((Sharding.ddp, 16), (Sharding.fsdp, 32)):
        plain = handed(survey, 8, sharding, Mode.plain)
        early = 0 if sharding is Sharding.ddp else 8  # what a forward has used is compared, too
        assert handed(survey, 8, sharding, Mode.auto) == plain + check
        assert handed(survey, 8, sharding, Mode.per_layer) == plain + check + early
    assert handed(survey, 8, Sharding.ddp, Mode.ghost) == handed(survey, 8, Sharding.ddp, Mode.auto)
    again = survey.numbers * 4 // 8  # the second backward gathers everything once more
    assert handed(survey, 8, Sharding.fsdp, Mode.ghost) == handed(survey, 8, Sharding.fsdp, Mode.auto) + again + 8


def test_a_ring():
    survey = surveyed("equal")
    (gradients, check) = traffic(survey, Setting(4))
    assert (gradients.handed, gradients.sent) == (4 * survey.trained, 6 * survey.trained)
    assert (check.handed, check.sent) == (16, 48)
