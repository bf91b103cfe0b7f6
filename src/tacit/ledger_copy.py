"""What a process that has no ledger of its own knows of the one that process 0 keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tacit.accounting import Release
from tacit.ledger import Ledger, Numbering

History = list[tuple[Release, int]]


@dataclass(frozen=True, slots=True)
class LedgerState:
    """What the others must know to count as the ledger does.

    Attributes:
        run: the number of this run.
        passes: the number of each pass over the data, by run and the loader's own number.
        history: all releases, if other runs have written some; else None.
    """

    run: int | None
    passes: dict[tuple[int, int], int]
    history: History | None = None


class LedgerCopy(Numbering):
    """Stands for process 0's ledger as of the last release. It writes nothing.

    Args:
        path: where the ledger is, on process 0's machine.
        history: what is in it.
    """

    def __init__(self, path: Path, history: Iterable[tuple[Release, int]]) -> None:
        super().__init__()
        self.path = path
        self._history = list(history)

    def history(self) -> History:
        """All releases of all runs, run-length encoded."""
        return list(self._history)

    @property
    def releases(self) -> int:
        """How many releases are on record."""
        return sum(count for _, count in self._history)

    def follow(self, state: LedgerState, release: Release | None = None) -> None:
        """Take over what process 0 has sent, and the release that it has just written down."""
        self._run, self._passes = state.run, dict(state.passes)
        if state.history is not None:
            self._history = list(state.history)
        if release is not None:
            last, count = self._history.pop() if self._history else (release, 0)
            self._history += [(last, count + 1)] if last == release else [(last, count), (release, 1)]


Book = Ledger | LedgerCopy
"""The ledger, or what stands for it in other processes."""
