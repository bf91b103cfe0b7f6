"""The comparison with plain DistributedDataParallel runs, and counts what is sent."""

from benchmarks.distributed import main


def test_a_tiny_run(capfd):
    assert main(["--tiny", "--case", "mlp", "--rounds", "1", "--steps", "1"]) == 0
    _, line = capfd.readouterr().out.splitlines()
    name, *_, plain, private = line.split()
    assert name == "mlp"
    assert int(private) == int(plain) + 16
