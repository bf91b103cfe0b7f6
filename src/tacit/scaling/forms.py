"""In which form each use would be held until the clip, and what that takes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tacit.explanation import note
from tacit.scaling.survey import Survey
from tacit.scaling.transients import transient
from tacit.uses import TUNER, CostModel, Dense, Outer, Room, Use, join, wide_dtype


@dataclass(frozen=True, slots=True)
class Formed:
    """One parameter's uses in one backward.

    Attributes:
        name: of the parameter.
        shape: of the parameter.
        strategy: in the words of ``engine.explain()``.
        held: bytes until the clip, as ``engine.explain()`` counts them: what several uses share is in each.
        seconds: what each form that there was is predicted to take.
        transient: bytes that its clip needs for itself, beside what is held.
        parts: what is held.
    """

    name: str
    shape: torch.Size
    strategy: str
    held: int
    seconds: Mapping[str, float]
    transient: int
    parts: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """Parameters that differ in the number of their block alone.

    Attributes:
        pattern: their names, with ``*`` for numbers.
        shape: of each.
        count: how many they are.
        strategy: of each.
        held: bytes of all until the clip, as ``engine.explain()`` counts them.
        seconds: of all, for each form.
        transient: bytes that the clip of one needs for itself.
    """

    pattern: str
    shape: torch.Size
    count: int
    strategy: str
    held: int
    seconds: Mapping[str, float]
    transient: int


def formed(survey: Survey, costs: CostModel, *, limit: float = math.inf, each: bool = False) -> tuple[Formed, ...]:
    """Choose the form of every use as the backward would.

    Args:
        survey: the uses.
        costs: rates of the device.
        limit: bytes that may be held.
        each: uses are let go of one by one (ghost mode, bounds by layer), so that each may take all.
    """
    room = Room(limit, each=each)
    room.expect(survey.expected)
    room.open()
    by_name: dict[str, list[Use]] = {}
    for name, use in survey.uses:
        by_name.setdefault(name, []).append(_kept(use, costs, room))
    return tuple(_described(name, by_name[name], costs, each=each) for name in survey.parameters if name in by_name)


def distinct(parts: Iterable[Tensor]) -> int:
    """Bytes of the storages that tensors are in, each counted once: uses share inputs and output gradients."""
    storages = {id(storage): storage for storage in (value.untyped_storage() for value in parts)}
    return sum(storage.nbytes() for storage in storages.values())


def kinds(parameters: Iterable[Formed]) -> list[Kind]:
    """Put together what differs in numbers within its name alone, and is held alike."""
    groups: dict[tuple[object, ...], list[Formed]] = {}
    for one in parameters:
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", one.name)
        groups.setdefault((pattern, one.shape, one.strategy), []).append(one)
    return [_kind(str(key[0]), group) for key, group in groups.items()]


def _kind(pattern: str, group: list[Formed]) -> Kind:
    first = group[0]
    return Kind(
        pattern,
        first.shape,
        len(group),
        first.strategy,
        sum(one.held for one in group),
        {form: sum(one.seconds[form] for one in group) for form in first.seconds},
        max(one.transient for one in group),
    )


def _kept(use: Use, costs: CostModel, room: Room) -> Use:
    """The form that :func:`tacit.rules.linear.outer_use` would keep."""
    if not isinstance(use, Outer) or use.product is None or use.tried is not None:
        return use
    product = use.product
    if room.form(TUNER.pick(costs.seconds(product)), product.held(use.a.nbytes + use.g.nbytes)) == "gram":
        return use
    kept = Dense(torch.empty((use.samples, *use.shape), dtype=wide_dtype(use.a), device="meta"))
    kept.product = product
    return kept


def _described(name: str, uses: list[Use], costs: CostModel, *, each: bool) -> Formed:
    use = join(uses)
    told = note(use)
    strategy = told.strategy if use.tried is None else f"timed in the first step; counted as {told.strategy}"
    seconds = {} if use.product is None else costs.seconds(use.product)
    parts = tuple(part for one in uses for part in one.parts)
    return Formed(name, use.shape, strategy, told.held, seconds, transient(use, alone=each), parts)
