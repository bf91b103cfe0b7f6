"""Accountants: they keep the history of a run and say what it costs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from tacit.accounting.checks import checked_count, checked_delta
from tacit.accounting.composition import Composition, compositions
from tacit.accounting.events import (
    KINDS,
    History,
    adjacency_of,
    checked_adjacency,
    for_group,
    release_from_dict,
    release_to_dict,
)
from tacit.accounting.intervals import Interval, interval_of
from tacit.accounting.lineage import Lineage, Stretch, stretches_of
from tacit.accounting.rdp import rdp_epsilon
from tacit.accounting.releases import Adjacency, PoissonRelease, Release
from tacit.accounting.tradeoff import TradeOff, trade_off
from tacit.errors import CheckpointError, ConfigurationError

_FORMAT = "tacit.accountant"
_VERSION = 1


class Accountant(ABC):
    """Keeps a history of releases and bounds the (ε, δ)-differential privacy of all of them.

    `record` takes constant time; the work happens in `get_epsilon`, whose results are cached
    until the next release.

    Attributes:
        lineage: which runs made which releases.
        replaced: how often another history was put in the place of this one.
    """

    name: ClassVar[str]

    def __init__(self, adjacency: Adjacency | None = None) -> None:
        self._wanted = None if adjacency is None else checked_adjacency(adjacency)
        self._unit: str | None = None
        self._history: list[tuple[Release, int]] = []
        self._steps = 0
        self._epsilons: dict[float, float] = {}
        self.lineage = Lineage()
        self.replaced = 0

    @property
    def unit(self) -> str | None:
        """What one unit of privacy is, if that is known: "record" or "user"."""
        return self._unit

    def check_unit(self, unit: str) -> None:
        """Refuse to count releases for which something else is the unit of privacy.

        Raises:
            ConfigurationError: the history is of other units.
        """
        if self._history and self._unit not in (None, unit):
            raise ConfigurationError(
                f"in {self._steps} releases so far one {self._unit} is the unit of privacy, in the coming ones it "
                f"would be one {unit}: their epsilons do not add up. Use a new PrivacyEngine (and ledger)."
            )

    def claim(self, unit: str) -> None:
        """Say what one unit of privacy is in all releases; see `check_unit`."""
        self.check_unit(unit)
        self._unit = unit

    @classmethod
    def mechanism(cls) -> str:
        """The name by which `create_accountant` makes this accountant."""
        return cls.name

    @property
    def history(self) -> tuple[tuple[Release, int], ...]:
        """All releases so far in order, run-length encoded: (release, how often in a row)."""
        return tuple(self._history)

    @property
    def steps(self) -> int:
        """Number of releases so far."""
        return self._steps

    @property
    def adjacency(self) -> Adjacency:
        """The neighbouring relation under which `get_epsilon` holds; see `events.adjacency_of`."""
        return adjacency_of(self._history, self._wanted)

    @property
    def wanted_adjacency(self) -> Adjacency | None:
        """The neighbouring relation that was asked for, if one was."""
        return self._wanted

    def __len__(self) -> int:
        """Number of runs of equal releases in the history."""
        return len(self._history)

    def record(self, release: Release, count: int = 1) -> None:
        """Add a release to the history, `count` times in a row.

        Raises:
            ConfigurationError: if `release` is not one of the known kinds, or has no proof under the
                adjacency of the others, or `count` is not an int of at least 1.
        """
        if type(release) not in KINDS.values():
            raise ConfigurationError(
                f"got {release!r}, whose privacy cost is unknown: record a PoissonRelease, or another of the kinds in "
                "tacit.accounting."
            )
        if not self._history or type(release) is not type(self._history[-1][0]):
            adjacency_of([*self._history, (release, 1)], self._wanted)
        self._append(release, checked_count("count", count))
        self.lineage.made(count)

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
        """Record one DP-SGD step on a Poisson-sampled batch, as in Opacus.

        Args:
            noise_multiplier: standard deviation of the noise / clipping bound.
            sample_rate: probability with which each record was in the batch, in (0, 1].

        Raises:
            ConfigurationError: if an argument is outside its range.
        """
        self.record(PoissonRelease(noise_multiplier, sample_rate))

    def get_epsilon(self, delta: float) -> float:
        """Upper bound on ε at `delta` for everything released so far.

        Args:
            delta: probability with which the ε bound may fail, strictly between 0 and 1.

        Returns:
            ε in nats: 0.0 if nothing was released, infinity if something was without noise.

        Raises:
            ConfigurationError: if `delta` is outside its range.
        """
        delta = checked_delta("delta", delta)
        if delta not in self._epsilons:
            self._epsilons[delta] = max(
                self._epsilon(each, delta) for each in compositions(self._history, self._wanted)
            )
        return self._epsilons[delta]

    def _epsilon(self, composition: Composition, delta: float) -> float:
        if composition.empty:
            return 0.0
        return math.inf if composition.noiseless else self._bound(composition, delta)

    def get_interval(self, delta: float, *, group: int = 1) -> Interval:
        """An interval that contains the ε at `delta` of everything released so far, whatever the accountant.

        Args:
            delta: probability with which the ε bound may fail, strictly between 0 and 1.
            group: for how many records together: those of one user, say, if each was drawn by itself.

        Raises:
            ConfigurationError: if an argument is outside its range, or no bound for groups is known for a release.
        """
        group = checked_count("group", group)
        history = [(for_group(release, group), count) for release, count in self._history]
        return interval_of(history, checked_delta("delta", delta), self._wanted)

    def get_trade_off(self) -> TradeOff:
        """What an attacker can do, given everything released so far; see `TradeOff`."""
        return trade_off(self._history, adjacency=self._wanted)

    def state_dict(self) -> dict[str, Any]:
        """The history as JSON-able data, for checkpoints."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "accountant": self.name,
            "unit": self._unit,
            "history": [[release_to_dict(release), count] for release, count in self._history],
            "lineage": self.lineage.stretches,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the history by that of `state_dict`.

        Raises:
            CheckpointError: if the state is malformed, of another format, version or accountant;
                the accountant is then unchanged.
        """
        history = _read_history(state, self.name)
        stretches = _read_stretches(state)
        unit = state.get("unit")
        self.replace(history)
        self.lineage.take_over(stretches)
        if history and isinstance(unit, str):
            self._unit = unit

    def replace(self, history: History) -> None:
        """Take another history in the place of this one, as that of a ledger."""
        self.lineage.take_over(None)
        self.replaced += 1
        self._history = []
        self._steps = 0
        self._epsilons = {}
        for release, count in history:
            self._append(release, count)

    @abstractmethod
    def _bound(self, composition: Composition, delta: float) -> float:
        """ε at `delta` of a composition that is neither empty nor without noise."""

    def _append(self, release: Release, count: int) -> None:
        if self._history and self._history[-1][0] == release:
            self._history[-1] = (release, self._history[-1][1] + count)
        else:
            self._history.append((release, count))
        self._steps += count
        self._epsilons = {}


class RDPAccountant(Accountant):
    """Rényi differential privacy: fast, with an ε some percent above the true one."""

    name = "rdp"

    def _bound(self, composition: Composition, delta: float) -> float:
        return rdp_epsilon(composition, delta)


class PLDAccountant(Accountant):
    """Privacy loss distributions composed with a certificate: the tightest ε, and still a bound."""

    name = "pld"

    def _bound(self, composition: Composition, delta: float) -> float:
        from tacit.accounting.certified import certified_epsilon

        return certified_epsilon(composition, delta).upper


# Opacus calls its numerical composition "prv"; it bounds the same quantity.
_ACCOUNTANTS: dict[str, type[Accountant]] = {"rdp": RDPAccountant, "pld": PLDAccountant, "prv": PLDAccountant}


def create_accountant(name: str, adjacency: Adjacency | None = None) -> Accountant:
    """A new accountant: "pld" (tight), "rdp" (fast) or "prv" (another name for "pld").

    Args:
        name: which.
        adjacency: the neighbouring relation: "add-or-remove-one", "zero-out-one" or "replace-one". By default the first
            of these for which all releases have a proof.

    Raises:
        ConfigurationError: if the name, or the relation, is none of these.
    """
    if not isinstance(name, str) or name not in _ACCOUNTANTS:
        raise ConfigurationError(
            f"accountant is {name!r}, for which no privacy bound is known: choose one of "
            f"{', '.join(map(repr, _ACCOUNTANTS))}."
        )
    return _ACCOUNTANTS[name](adjacency)


def _read_history(state: Mapping[str, Any], name: str) -> list[tuple[Release, int]]:
    expected = {"format": _FORMAT, "version": _VERSION, "accountant": name}
    if not isinstance(state, Mapping) or any(state.get(key) != value for key, value in expected.items()):
        found = {key: state.get(key) for key in expected} if isinstance(state, Mapping) else state
        raise CheckpointError(
            f"the accountant state is {found!r}, but {expected!r} was expected: its history would be "
            "misread. Load it into the kind of accountant that saved it."
        )
    try:
        return [
            (release_from_dict(release), checked_count("release count", count)) for release, count in state["history"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the accountant state has no readable history ({error}), so the privacy spent before the "
            "checkpoint is unknown. Load an intact checkpoint."
        ) from error


def _read_stretches(state: Mapping[str, Any]) -> list[Stretch] | None:
    try:
        return stretches_of(state.get("lineage"))
    except ValueError as error:
        raise CheckpointError(
            f"the accountant state cannot be read: {error}, but {state['lineage']!r} was found. Load an intact "
            "checkpoint."
        ) from error
