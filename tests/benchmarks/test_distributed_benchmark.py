"""The comparison with plain DistributedDataParallel, and fully_shard, runs, and counts what is sent."""

import pytest
from benchmarks.distributed import main


@pytest.mark.parametrize(("wrapper", "compared"), [([], 16), (["--fsdp"], 32)])
def test_a_tiny_run(capfd, wrapper, compared):
    assert main(["--tiny", "--case", "mlp", "--rounds", "1", "--steps", "1", *wrapper]) == 0
    _, line = capfd.readouterr().out.splitlines()
    name, *_, plain, private = line.replace(",", "").split()
    assert name == "mlp"
    assert int(private) == int(plain) + compared
