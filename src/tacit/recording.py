"""Putting releases on record: in the accountants of all processes, and in the ledger of one."""

from __future__ import annotations

from collections.abc import Callable

from tacit.accounting import Accountant, Release
from tacit.distributed import Group
from tacit.errors import ConfigurationError
from tacit.ledger import Ledger
from tacit.ledger_copy import Book, LedgerCopy, LedgerState


class Recorder:
    """Records each release once, before it happens: in process 0's ledger, and then with every accountant.

    Args:
        accountant: this process's.
        ledger: the ledger, or what stands for it here; None if there is none.
        group: the processes.
    """

    def __init__(self, accountant: Accountant, ledger: Book | None, group: Group) -> None:
        self._accountant = accountant
        self._ledger = ledger
        self._group = group
        self._known_to_all = accountant.steps
        self._replaced = accountant.replaced

    def begin(self, *, records: int, sampler: str, noise: str, unit: str) -> None:
        """Begin a run: under one name in all processes, and in the ledger, if there is one; see `Ledger.begin`."""

        def first() -> LedgerState:
            assert isinstance(self._ledger, Ledger)
            self._ledger.begin(records=records, sampler=sampler, noise=noise, unit=unit)
            return LedgerState(self._ledger.run, self._ledger.passes)

        lineage = self._accountant.lineage
        lineage.follow(self._group.from_first(lambda: lineage))
        if self._ledger is not None:
            self._follow(self._group.from_first(first))

    def catch_up(self) -> None:
        """Let the accountant know of what other runs have written into the ledger since."""
        if self._ledger is not None and self._ledger.releases != self._accountant.steps:
            self._accountant.replace(self._ledger.history())
            self.follow()

    def follow(self) -> None:
        """The accountant has another history now, and the loader's passes are none of those in it."""
        self._replaced = self._accountant.replaced

    def record(self, release: Release, check: Callable[[Release], None]) -> None:
        """Put a release on record.

        Args:
            release: as this run counts its passes over the data.
            check: is shown the release as the history of all runs has it, and may refuse it.

        Raises:
            ConfigurationError: somebody has put another history in the accountant's place.
        """
        if self._replaced != self._accountant.replaced:
            raise ConfigurationError(
                "the accountant's history was replaced while this run was going on (load_state_dict(), replace()): its "
                "passes over the data would be taken for those that are in it. Nothing was released. Load before "
                "make_private(), or use engine.load_checkpoint() or engine.load_state_dict()."
            )
        if self._ledger is None:
            check(release)
        else:
            release, state = self._group.from_first(lambda: self._written(release, check))
            self._follow(state, release)
        self._accountant.record(release)
        self._known_to_all = self._accountant.steps

    def _written(self, release: Release, check: Callable[[Release], None]) -> tuple[Release, LedgerState]:
        """Write a release into the ledger, and tell what the other processes must know of it."""
        assert isinstance(self._ledger, Ledger)
        with self._ledger.alone():
            return self._written_alone(self._ledger, release, check)

    def _written_alone(
        self, ledger: Ledger, release: Release, check: Callable[[Release], None]
    ) -> tuple[Release, LedgerState]:
        self.catch_up()
        # In the history of all runs, passes of this one have other numbers than its loader gives them.
        counted = ledger.numbered(release)
        check(counted)
        news = list(self._accountant.history) if self._accountant.steps != self._known_to_all else None
        ledger.record(release)  # first, and on the disk: a release that is not on record never happens
        return counted, LedgerState(ledger.run, ledger.passes, news)

    def _follow(self, state: LedgerState, release: Release | None = None) -> None:
        """Take over what process 0 has written; it knows of it already."""
        if isinstance(self._ledger, LedgerCopy):
            self._ledger.follow(state, release)
            if state.history is not None:
                self._accountant.replace(state.history)
                self.follow()
