"""Clipping by groups of parameters: a bound for each, and their root sum of squares for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from tacit.clipping.base import ClippingPolicy
from tacit.clipping.flat import bounded
from tacit.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class GroupedClipping(ClippingPolicy):
    """Factor ``min(1, C_k / ‖g_k‖)`` in each group k (McMahan et al. 2018, arXiv:1710.06963, "per-layer clipping").

    Attributes:
        bounds: C_k of each group.
        members: the group of each parameter.
    """

    bounds: Mapping[str, float]
    members: Mapping[str, str]

    @property
    def sensitivity(self) -> float:
        return math.hypot(*self.bounds.values())

    def group(self, name: str) -> str:
        if name not in self.members:
            raise ConfigurationError(
                f"{name!r} was frozen when make_private() shared the bound out among groups of parameters, and has "
                "none. Unfreeze it before, or use clipping='flat'."
            )
        return self.members[name]

    def factors(self, norms: Tensor, names: Sequence[str]) -> Tensor:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            rows.setdefault(self.group(name), []).append(row)
        found = torch.empty_like(norms)
        for group, chosen in rows.items():
            found[chosen] = bounded(norms[chosen], self.bounds[group])
        return found


def per_layer(bound: float, names: Sequence[str]) -> GroupedClipping:
    """A group for each module that owns parameters, all with the bound C / √K, so that the sensitivity is C."""
    members = {name: name.rpartition(".")[0] for name in names}
    layers = dict.fromkeys(members.values(), 0.0)
    each = bound / math.sqrt(max(len(layers), 1))
    return GroupedClipping(dict.fromkeys(layers, each), members)


def by_patterns(bounds: Mapping[str, float], names: Sequence[str]) -> GroupedClipping:
    """A group for each pattern, as of :mod:`fnmatch`; a parameter belongs to the first one that fits its name.

    Raises:
        ConfigurationError: a parameter fits none, or a pattern fits no parameter.
    """
    members = {}
    for name in names:
        fitting = [pattern for pattern in bounds if fnmatchcase(name, pattern)]
        if not fitting:
            raise ConfigurationError(
                f"max_grad_norm says no bound for the parameter {name!r}: none of its patterns "
                f"({', '.join(map(repr, bounds))}) fits. A last pattern '*' takes all that is left."
            )
        members[name] = fitting[0]
    idle = [pattern for pattern in bounds if pattern not in members.values()]
    if names and idle:
        raise ConfigurationError(
            f"max_grad_norm has a bound for {', '.join(map(repr, idle))}, which fits no private parameter (or only "
            "such as an earlier pattern has taken): it would add noise for nothing. Take it out."
        )
    return GroupedClipping(dict(bounds), members)
