"""Histories of releases: under which neighbouring relation they are private, and how they are written down.

A *history* is a run-length encoded sequence of releases, ``((release, count), ...)``, in the order they happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeAlias, get_args

from tacit.accounting.releases import (
    Adjacency,
    BallsInBinsRelease,
    CyclicRelease,
    EpochRelease,
    FixedSizeRelease,
    PoissonRelease,
    Release,
    TruncatedRelease,
)
from tacit.errors import ConfigurationError

History: TypeAlias = Iterable[tuple[Release, int]]

ADJACENCIES: tuple[Adjacency, ...] = get_args(Adjacency)
"""All neighbouring relations, the usual one first."""

KINDS: dict[str, type[Release]] = {
    kind.kind: kind
    for kind in (
        PoissonRelease,
        EpochRelease,
        TruncatedRelease,
        BallsInBinsRelease,
        FixedSizeRelease,
        CyclicRelease,
    )
}


def adjacency_of(history: History, wanted: Adjacency | None = None) -> Adjacency:
    """The neighbouring relation under which the epsilon of a whole history holds.

    Args:
        history: what was released.
        wanted: which one; else the first, in the order of `ADJACENCIES`, for which every release has a proof.

    Raises:
        ConfigurationError: no proof is known for one of the releases; the message names the relations that have one.
    """
    kinds = {type(release) for release, _ in history}
    proved = [way for way in ADJACENCIES if all(way in kind.adjacencies for kind in kinds)]
    if wanted is None and proved:
        return proved[0]
    if wanted in proved:
        return checked_adjacency(wanted)
    shown = "; ".join(f"{kind.kind}: {', '.join(kind.adjacencies)}" for kind in kinds)
    asked = f'adjacency="{wanted}"' if wanted is not None else "one adjacency for all releases"
    raise ConfigurationError(f"no proof is known here for {asked}. Those with a proof are, for {shown}.")


def checked_adjacency(value: object) -> Adjacency:
    """`value` as a known neighbouring relation, or ConfigurationError."""
    for known in ADJACENCIES:
        if value == known:
            return known
    raise ConfigurationError(
        f"adjacency is {value!r}, for which no pair of distributions is known here: choose one of "
        f"{', '.join(map(repr, ADJACENCIES))}."
    )


def counted(history: History) -> Counter[Release]:
    """How often each release is in a history."""
    found: Counter[Release] = Counter()
    for release, count in history:
        found[release] += count
    return found


def epoch_of(release: Release) -> int | None:
    """Which pass over the data a release belongs to, if its kind counts passes."""
    return release.epoch if isinstance(release, (EpochRelease, BallsInBinsRelease, CyclicRelease)) else None


def in_epoch(release: Release, epoch: int) -> Release:
    """The release, as one of another pass over the data."""
    if isinstance(release, (EpochRelease, BallsInBinsRelease, CyclicRelease)):
        return replace(release, epoch=epoch)
    return release


def for_group(release: Release, records: int) -> Release:
    """What a release costs a group of records together, as a release for one.

    Of Poisson draws: the number of the group's records in a batch is Binomial(records · draws, rate) (Ganesh 2024,
    arXiv:2401.10294). Of disjoint batches: at worst all are in the same one.

    Raises:
        ConfigurationError: no proof is known for groups of this kind.
    """
    if records == 1:
        return release
    if isinstance(release, PoissonRelease):
        return replace(release, draws=release.draws * records)
    if isinstance(release, EpochRelease):
        return replace(release, noise_multiplier=release.noise_multiplier / records)
    raise ConfigurationError(
        f"no bound for groups of records is known here for {release.kind!r} releases. Those with one are of Poisson "
        "sampling and of disjoint batches."
    )


def release_to_dict(release: Release) -> dict[str, Any]:
    """The release as a JSON-able dict with its kind; see `release_from_dict`."""
    return {"kind": release.kind} | {field.name: getattr(release, field.name) for field in fields(release)}


def release_from_dict(data: Mapping[str, Any]) -> Release:
    """The release that `release_to_dict` described.

    Raises:
        ConfigurationError: if the kind is unknown, a field is missing, unknown or out of range.
    """
    values = {name: value for name, value in data.items() if name != "kind"}
    kind = data.get("kind")
    found = KINDS.get(kind) if isinstance(kind, str) else None
    if found is None or set(values) != {field.name for field in fields(found)}:
        known = {name: [field.name for field in fields(release)] for name, release in KINDS.items()}
        raise ConfigurationError(
            f"{dict(data)!r} does not describe a release, so its privacy cost is unknown: "
            f"expected a kind and exactly its fields, one of {known}."
        )
    return found(**values)
