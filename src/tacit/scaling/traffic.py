"""Bytes that a process sends in one step: the formulas of docs/scaling.md."""

from __future__ import annotations

from dataclasses import dataclass

from tacit.scaling.memory import root_and_blocks
from tacit.scaling.setting import MASTER, Mode, Setting
from tacit.scaling.survey import Survey

CHECK, CHECK_SHARDED = 16, 32
"""Bytes that processes compare before a release. With shards, what all share and what one shard's holders do."""
COMPARED_USES = 8
"""And after a forward, where sums of shards are added up before all have been made."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of collective in one step.

    Attributes:
        name: what it is for.
        handed: bytes that a process hands over.
        sent: bytes that leave the process, where the collective runs as a ring.
    """

    name: str
    handed: int
    sent: int


def traffic(survey: Survey, setting: Setting) -> list[Traffic]:
    """All collectives of one step, in which one backward is run."""
    n = setting.processes
    if n == 1:
        return []
    found = _sharded(survey, setting) if setting.sharded else [_ring("all-reduce of gradients", survey.trained, n)]
    if setting.mode is not Mode.plain:
        check = CHECK_SHARDED if setting.sharded else CHECK
        if setting.sharded and setting.mode is not Mode.auto:
            check += COMPARED_USES
        found.append(Traffic("what is compared before a release", check, check * (n - 1)))
    return found


def _ring(name: str, numbers: int, n: int) -> Traffic:
    size = numbers * MASTER
    return Traffic(name, size, 2 * size * (n - 1) // n)


def _sharded(survey: Survey, setting: Setting) -> list[Traffic]:
    n = setting.processes
    root, blocks = root_and_blocks(survey)
    # What is outside the blocks stays gathered from forward to backward.
    gathered = survey.itemsize * (root + 2 * sum(blocks))
    if setting.mode is Mode.ghost:  # its second backward needs everything once more
        gathered += survey.itemsize * (root + sum(blocks))
    reduced = MASTER * survey.trained
    return [
        Traffic("all-gather of parameters", gathered // n, gathered * (n - 1) // n),
        Traffic("reduce-scatter of gradients", reduced, reduced * (n - 1) // n),
    ]
