"""How much memory the uses of one backward may hold until they are clipped."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from tacit.uses.cost import Asked
from tacit.uses.workspace import Workspace

SHARE = 4
"""Where nobody says how much may be held, one part in so many of the memory that is free."""


class Room:
    """Bytes that may be held. Forwards say what they will need at least; backwards ask before they take more.

    Args:
        limit: the most that may be held.
        each: uses are let go of one by one, so that each may take all.
        measured: strategies are chosen by timing them, once for each shape, where they can be.
        workspace: memory for whole gradients.

    Attributes:
        each, measured, workspace: as given.
        asked: what is asked of uses.
        expected: bytes that will be held if every use keeps its inputs and output gradients.
    """

    def __init__(
        self,
        limit: float = math.inf,
        *,
        each: bool = False,
        measured: bool = False,
        workspace: Workspace | None = None,
    ) -> None:
        self._limit = limit
        self.each = each
        self.measured = measured
        self.workspace = workspace
        self.asked = Asked.BOTH
        self.expected = 0
        self._spare = limit

    @property
    def exceeded(self) -> bool:
        return self.expected > self._limit

    def expect(self, size: int) -> None:
        """A call of a forward will hold so many bytes."""
        self.expected += size

    def open(self) -> None:
        """A backward begins."""
        if self.workspace is not None:
            self.workspace.begin()
        self._spare = self._limit if self.each else self._limit - self.expected

    def form(self, chosen: str, held: Mapping[str, int]) -> str:
        """The form of a use that is to be kept: the chosen one, or where that is too large the one that holds least.

        Args:
            chosen: the name of the form that is wanted.
            held: what each form holds until the clip, in bytes; the least of them was expected.
        """
        least = min(held, key=held.__getitem__)
        return chosen if self.afford(held[chosen] - held[least]) else least

    def afford(self, extra: int) -> bool:
        """Whether a use may hold ``extra`` bytes more than was expected of it; if so, they are taken."""
        if extra > self._spare:
            return False
        if not self.each:
            self._spare -= extra
        return True


def free_memory(device: torch.device) -> float:
    """Bytes of the device's memory that are free, infinite if nobody can tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    information = Path("/proc/meminfo")
    if device.type == "cpu" and information.exists():
        for line in information.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    if device.type == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return math.inf
