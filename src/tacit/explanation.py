"""How per-sample gradients were held and clipped, parameter by parameter: for whoever wonders about time or memory."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from tacit.uses import Dense, Gather, Outer, Patches, Routed, TableAndHead, Use


@dataclass(frozen=True, slots=True)
class Held:
    """One parameter in the last backward.

    Attributes:
        name: of the parameter.
        shape: of the parameter.
        strategy: in words.
        held: bytes that were kept until the clip, of which activations are there anyway. (In two passes, and where
            groups of parameters have bounds of their own, they are let go of one by one.)
    """

    name: str
    shape: tuple[int, ...]
    strategy: str
    held: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """What :meth:`tacit.PrivacyEngine.explain` returns.

    Attributes:
        parameters: one entry each, in the order of the model.
        tried: where strategies were timed: for each shape milliseconds by strategy.
    """

    parameters: tuple[Held, ...]
    tried: Mapping[Hashable, Mapping[str, float]]

    @property
    def text(self) -> str:
        """A table, and what was tried."""
        if not self.parameters:
            return "No private backward has run yet."
        width = max(len(one.name) for one in self.parameters)
        lines = [
            f"{one.name:<{width}}  {'×'.join(map(str, one.shape)) or 'scalar':>16}  {one.held / 1e6:8.2f} MB  "
            f"{one.strategy}"
            for one in self.parameters
        ]
        total = sum(one.held for one in self.parameters) / 1e6
        lines.append(f"{'together':<{width}}  {'':>16}  {total:8.2f} MB")
        for key, times in self.tried.items():
            found = ", ".join(f"{name} {milliseconds:.2f} ms" for name, milliseconds in sorted(times.items()))
            lines.append(f"tried {key}: {found}")
        return "\n".join(lines)


def held(name: str, use: Use) -> Held:
    """Describe a use, without keeping anything of it."""
    strategy, size = _described(use)
    return Held(name, tuple(use.shape), strategy, size)


def _described(use: Use) -> tuple[str, int]:
    if isinstance(use, Dense):
        return "whole gradients of single samples", use.gradients.nbytes
    if isinstance(use, Outer):
        positions = use.a.shape[1]
        how = "norms of inputs and output gradients" if positions == 1 else f"Gram matrices of {positions} positions"
        return how, use.a.nbytes + use.g.nbytes
    if isinstance(use, Patches):
        return "Gram matrices of pixels", use.x.nbytes + use.g.nbytes
    if isinstance(use, Gather):
        return "sums over the rows that each sample looked up", use.ids.nbytes + use.g.nbytes
    if isinstance(use, Routed):
        return "Gram matrices within each expert", use.a.nbytes + use.g.nbytes
    if isinstance(use, TableAndHead):
        table, head = _described(use.table)[1], _described(use.head)[1]
        return "table and head together, by their inner products", table + head
    return type(use).__name__, 0
