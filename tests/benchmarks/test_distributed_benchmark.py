"""The comparison with plain DDP, and fully_shard, runs, and counts what is sent: as much as a plan says."""

import multiprocessing

import pytest
from benchmarks.distributed import PROCESSES, main
from benchmarks.registry import BY_NAME
from tests.scaling.small import of_module

from tacit.scaling.setting import Mode, Setting, Sharding
from tacit.scaling.traffic import traffic


@pytest.mark.parametrize(("wrapper", "compared"), [([], 16), (["--fsdp"], 32)])
def test_a_tiny_run(capfd, wrapper, compared):
    assert main(["--tiny", "--case", "mlp", "--rounds", "1", "--steps", "1", "--limit", "150", *wrapper]) == 0
    _, line = capfd.readouterr().out.splitlines()
    name, *_, plain, private, memory, private_memory = line.replace(",", "").split()
    assert name == "mlp"
    assert all(len(each.split("/")) == PROCESSES and "-" not in each for each in (memory, private_memory))
    assert int(private) == int(plain) + compared
    if wrapper:
        return
    model, records = BY_NAME["mlp"].make(**BY_NAME["mlp"].tiny)
    survey = of_module(model, 2, *records[0][0].shape)
    for mode, counted in ((Mode.plain, plain), (Mode.auto, private)):
        planned = traffic(survey, Setting(PROCESSES, Sharding.ddp, mode))
        assert sum(each.handed for each in planned) == int(counted)


def test_processes_that_do_not_end_are_killed():
    with pytest.raises(TimeoutError, match="times: the processes have not ended after 0 seconds"):
        main(["--tiny", "--case", "mlp", "--rounds", "1", "--steps", "1", "--limit", "0"])
    assert not multiprocessing.active_children()
