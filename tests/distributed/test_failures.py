"""A process that stops takes the others with it: by its connection, or by the group's timeout."""

import pytest
from processes import Failed, together
from scenarios import stops


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
