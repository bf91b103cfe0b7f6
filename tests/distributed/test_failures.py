"""A process that stops takes the others with it: by its connection, or by the group's timeout."""

import pytest
from processes import Failed, results, together
from scenarios import Kill, killed, resumed, stops

from tacit import Ledger
from tacit.accounting import epsilon


@pytest.mark.parametrize("how", ["in backward", "in step"])
def test_a_process_that_fails_stops_the_others(how):
    mine, other = together(2, stops, how, timeout=10.0)
    assert isinstance(other, Failed)
    assert "out of memory" in str(other)
    assert "another process did not come to this point" in mine


def test_a_process_that_hangs_is_waited_for_until_the_timeout():
    mine, other = together(2, stops, "hangs", timeout=6.0)
    assert other == "slept"
    assert "DistributedError: another process did not come to this point" in mine
    assert "start all of them again" in mine


@pytest.mark.parametrize(
    ("kill", "recorded"),
    [
        (Kill(1, "in backward"), 2),
        (Kill(0, "before the record"), 2),
        (Kill(0, "after the record"), 3),
        (Kill(1, "after the record"), 3),
    ],
    ids=lambda value: f"{value.rank} {value.when}" if isinstance(value, Kill) else None,
)
def test_a_killed_process(tmp_path, kill, recorded):
    """The other stops in words; whatever it has released is on record; a run that is started again counts it all."""
    found = together(2, killed, str(tmp_path), kill, timeout=20.0)  # which waits for a minute at most
    assert str(found[kill.rank]) == "signal 9"
    other = found[1 - kill.rank]
    assert "another process did not come to this point" in other["error"], other
    ledger = Ledger(tmp_path / "ledger")
    assert ledger.releases == recorded
    assert other["seen"] <= recorded
    ledger.close()

    first, second = results(2, resumed, str(tmp_path))
    assert first == second
    stated = [
        epsilon(noise_multiplier=2.0, sample_rate=1 / 4, steps=steps, delta=1e-5) for steps in (recorded, recorded + 4)
    ]
    assert (first["before"], first["after"]) == (recorded, recorded + 4)
    assert [first["epsilon before"], first["epsilon after"]] == stated
