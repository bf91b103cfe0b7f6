"""The ledger: every release over one data set, written down before anyone sees it.

An SQLite file in WAL mode with full synchronisation, to which rows are only ever added. A process that dies, or a disk
that is full, leaves at worst a release on record that never happened. Several runs, one after the other or at the same
time, share one ledger: their costs add up.
"""

from __future__ import annotations

import json
import platform
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from tacit.accounting import Release
from tacit.accounting.events import epoch_of, in_epoch, release_from_dict, release_to_dict
from tacit.errors import ConfigurationError, LedgerError

_FORMAT = 2
_WAIT = 60.0
_TABLES = """
CREATE TABLE IF NOT EXISTS data_set (id INTEGER PRIMARY KEY CHECK (id = 1), format INTEGER NOT NULL, name TEXT NOT NULL,
    records INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS runs (run INTEGER PRIMARY KEY AUTOINCREMENT, began REAL NOT NULL, unit TEXT NOT NULL,
    sampler TEXT NOT NULL, noise TEXT NOT NULL, code TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS releases (id INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER NOT NULL REFERENCES runs(run),
    step INTEGER NOT NULL, time REAL NOT NULL, event TEXT NOT NULL, UNIQUE (run, step));
CREATE TRIGGER IF NOT EXISTS kept_runs BEFORE UPDATE ON runs BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS all_runs BEFORE DELETE ON runs BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS kept BEFORE UPDATE ON releases BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS whole BEFORE DELETE ON releases BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""


class Numbering:
    """How the passes over the data of several runs are counted: those of different runs are different passes."""

    def __init__(self) -> None:
        self._run: int | None = None
        self._passes: dict[tuple[int, int], int] = {}

    def numbered(self, release: Release, *, ahead: dict[tuple[int, int], int] | None = None) -> Release:
        """A release of this run as the history has it: its pass over the data is none of another run's.

        Args:
            release: as the run counts its passes.
            ahead: passes that are only planned, which get their numbers here.
        """
        epoch = epoch_of(release)
        if epoch is None or self._run is None:
            return release
        known = self._passes if ahead is None else ahead
        return in_epoch(release, known.setdefault((self._run, epoch), len(known) + 1))

    def planned(self, history: Iterable[tuple[Release, int]]) -> list[tuple[Release, int]]:
        """Coming releases of this run as the history will have them."""
        ahead = dict(self._passes)
        return [(self.numbered(release, ahead=ahead), count) for release, count in history]


class Ledger(Numbering):
    """What was released over one data set.

    Args:
        path: the file; it is made if it is not there.
        name: what the data set is called; by default "unnamed". No content of it is ever written.

    Raises:
        LedgerError: the file is no ledger, or cannot be written.
    """

    def __init__(self, path: str | Path, *, name: str | None = None) -> None:
        if not isinstance(path, (str, Path)):
            raise ConfigurationError(f"ledger={path!r}: it is a path, or a tacit.Ledger.")
        self.path = Path(path)
        self._name = name
        super().__init__()
        self._step = 0
        with self._explained("opened"):
            self._file = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = FULL")
            for statement in _statements(_TABLES):
                self._file.execute(statement)

    @classmethod
    def existing(cls, path: str | Path) -> Ledger:
        """Open a ledger to read it.

        Raises:
            LedgerError: there is none.
        """
        if not Path(path).is_file():
            raise LedgerError(f"there is no ledger at {path}.")
        return cls(path)

    def again(self) -> Ledger:
        """The same file, opened once more: for another run, which counts its steps and passes by itself."""
        return Ledger(self.path, name=self._name)

    def begin(self, *, records: int, sampler: str, noise: str, unit: str = "record") -> None:
        """Begin a run.

        Args:
            records: how many records the data set has.
            sampler: how batches are drawn, in words.
            noise: where the noise comes from, in words.
            unit: what one of the records is: "record", or "user".

        Raises:
            LedgerError: the ledger is of another data set, or of other units of privacy, or cannot be written.
        """
        with self._explained("written"), self.alone():
            known = self._file.execute("SELECT format, name, records FROM data_set").fetchone()
            if known is None:
                data_set = (1, _FORMAT, self._name or "unnamed", records)
                self._file.execute("INSERT INTO data_set VALUES (?, ?, ?, ?)", data_set)
            else:
                self._check(known, records)
            self._check_unit(unit)
            row = (time.time(), unit, sampler, noise, f"tacit {version('tacit')}, Python {platform.python_version()}")
            query = "INSERT INTO runs (began, unit, sampler, noise, code) VALUES (?, ?, ?, ?, ?)"
            made = self._file.execute(query, row)
            self._run, self._step = made.lastrowid, 0

    def record(self, release: Release) -> None:
        """Write a release down; it is on the disk when this returns.

        Raises:
            LedgerError: it could not be written, so it must not happen.
        """
        if self._run is None:
            raise LedgerError("no run was begun in this ledger. Pass it to make_private().")
        row = (self._run, self._step + 1, time.time(), json.dumps(release_to_dict(release)))
        with self._explained("written"):
            self._file.execute("INSERT INTO releases (run, step, time, event) VALUES (?, ?, ?, ?)", row)
        self._step += 1

    def _check_unit(self, unit: str) -> None:
        query = "SELECT DISTINCT unit FROM runs WHERE run IN (SELECT run FROM releases)"
        others = [known for (known,) in self._file.execute(query) if known != unit]
        if others:
            raise LedgerError(
                f"{self.path} is of runs in which one {others[0]} is the unit of privacy, here it is one {unit}: their "
                "epsilons do not add up. Use a ledger of its own."
            )

    def history(self) -> list[tuple[Release, int]]:
        """All releases of all runs, run-length encoded. Epochs of different runs are different passes over the data."""
        passes: dict[tuple[int, int], int] = {}
        found: list[Release] = []
        for run, event in self._rows("SELECT run, event FROM releases ORDER BY id"):
            release = release_from_dict(json.loads(event))
            epoch = epoch_of(release)
            if epoch is not None:
                release = in_epoch(release, passes.setdefault((run, epoch), len(passes) + 1))
            found.append(release)
        self._passes = passes
        return [(release, len(list(same))) for release, same in groupby(found)]

    @property
    def run(self) -> int | None:
        """The number of the run that was begun."""
        return self._run

    @property
    def passes(self) -> dict[tuple[int, int], int]:
        """The number of each pass over the data, by run and the loader's own number."""
        return dict(self._passes)

    @property
    def releases(self) -> int:
        """How many releases are on record. Asked for in every step: rows are only added, so the last number tells."""
        return int(self._rows("SELECT COALESCE(MAX(id), 0) FROM releases")[0][0])

    def summary(self) -> dict[str, Any]:
        """The data set and its runs, as JSON-able data."""
        data = self._rows("SELECT name, records FROM data_set")
        runs = self._rows(
            "SELECT runs.run, began, sampler, noise, code, COUNT(id), MAX(time) FROM runs LEFT JOIN releases "
            "ON releases.run = runs.run GROUP BY runs.run ORDER BY runs.run"
        )
        names = ("run", "began", "sampler", "noise", "code", "releases", "last")
        return {
            "name": data[0][0] if data else "unnamed",
            "records": data[0][1] if data else 0,
            "runs": [dict(zip(names, row, strict=True)) for row in runs],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Every release, as JSON-able data."""
        found = self._rows("SELECT id, run, step, time, event FROM releases ORDER BY id")
        names = ("id", "run", "step", "time")
        return [dict(zip(names, row, strict=False)) | {"event": json.loads(row[4])} for row in found]

    def close(self) -> None:
        self._file.close()

    def _check(self, known: tuple[int, str, int], records: int) -> None:
        form, name, size = known
        if form != _FORMAT:
            raise LedgerError(f"{self.path} has the format {form}, this version of tacit reads {_FORMAT}.")
        if size != records or (self._name is not None and self._name != name):
            raise LedgerError(
                f"{self.path} is of {name!r} with {size} records, this data set is {self._name or name!r} with "
                f"{records}: costs over different data do not add up. Keep one ledger for each data set."
            )

    def _rows(self, query: str) -> list[Any]:
        with self._explained("read"):
            return self._file.execute(query).fetchall()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other run writes meanwhile: what is decided by the history holds for what is written then."""
        with self._explained("written"):
            self._file.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._file.in_transaction:  # a full disk has ended it
                self._file.execute("ROLLBACK")
            raise
        with self._explained("written"):
            self._file.execute("COMMIT")

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(
                f"the ledger {self.path} could not be {verb} ({error}), so the release would not be on record. Nothing "
                "was released. Free space or mend the file, and go on."
            ) from error


def _statements(script: str) -> list[str]:
    """Split a script whose triggers hold semicolons of their own."""
    parts, current = [], ""
    for line in script.strip().splitlines():
        current += line + "\n"
        if sqlite3.complete_statement(current):
            parts.append(current)
            current = ""
    return parts
