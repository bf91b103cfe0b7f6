"""A history that continues another begins with its stretches."""

import pytest

from tacit.accounting import create_accountant
from tacit.accounting.lineage import Lineage, continues


def made(*counts):
    lineage = Lineage()
    for count in counts:
        lineage.made(count)
    return lineage


def test_stretches():
    lineage, other = made(2, 1), made(4)
    ((name, count),) = lineage.stretches
    assert count == 3
    other.take_over(lineage.stretches)
    assert other.stretches == [(name, 3)]
    other.made(1)
    lineage.made(1)
    assert lineage.stretches == [(name, 4)]
    assert [count for _, count in other.stretches] == [3, 1]
    lineage.take_over([(name, 3)])
    lineage.made(1)
    assert lineage.stretches[1][0] not in (name, other.stretches[1][0])
    third = made()
    third.follow(lineage)
    for each in (third, lineage):
        each.made(2)
    assert third.stretches == lineage.stretches
    lineage.take_over(None)
    lineage.made(1)
    assert lineage.stretches is None


@pytest.mark.parametrize(
    ("later", "earlier", "does"),
    [
        ([], [], True),
        ([("a", 1)], [], True),
        (None, [], True),
        (None, None, True),
        ([], [("a", 1)], False),
        ([("a", 2)], [("a", 1)], True),
        ([("a", 1)], [("a", 2)], False),
        ([("b", 2)], [("a", 1)], False),
        ([("a", 2), ("b", 1)], [("a", 2)], True),
        ([("a", 2), ("b", 1)], [("a", 1), ("b", 1)], False),
        ([("a", 2), ("c", 1)], [("a", 2), ("b", 1)], False),
        (None, [("a", 1)], False),
        ([("a", 1)], None, False),
    ],
)
def test_what_continues_what(later, earlier, does):
    assert continues(later, earlier) is does


def test_of_a_saved_accountant():
    accountant, other = create_accountant("rdp"), create_accountant("rdp")
    accountant.step(noise_multiplier=1.0, sample_rate=0.1)
    other.load_state_dict(accountant.state_dict())
    assert other.lineage.stretches == accountant.lineage.stretches
    state = accountant.state_dict()
    del state["lineage"]  # of an older version
    other.load_state_dict(state)
    assert other.lineage.stretches is None
    assert other.steps == 1
