"""How per-sample gradients were held and clipped, parameter by parameter: for whoever wonders about time or memory."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from tacit.uses import (
    TUNER,
    Dense,
    Gather,
    Outer,
    Patches,
    Product,
    Routed,
    TableAndHead,
    Use,
    costs_of,
    product_key,
    time_product,
    wide_dtype,
)


@dataclass(frozen=True, slots=True)
class Held:
    """One parameter in the last backward.

    Attributes:
        name: of the parameter.
        shape: of the parameter.
        strategy: in words.
        held: bytes that were kept until the clip, of which activations are there anyway. (In two passes, and where
            groups of parameters have bounds of their own, they are let go of one by one.)
        predicted: milliseconds of each strategy that there was, as far as they are predicted.
        measured: the same, as far as they were timed.
    """

    name: str
    shape: tuple[int, ...]
    strategy: str
    held: int
    predicted: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def agree(self) -> bool | None:
        """Whether the quickest strategy was predicted; None if it was not both predicted and timed."""
        if not self.predicted or not self.measured:
            return None
        return min(self.predicted, key=self.predicted.__getitem__) == min(self.measured, key=self.measured.__getitem__)

    @property
    def line(self) -> str:
        """Strategies that there were, and their times."""
        names = dict.fromkeys([*self.predicted, *self.measured])
        return ", ".join(f"{name} {_times(self.predicted.get(name), self.measured.get(name))}" for name in names)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What :meth:`tacit.PrivacyEngine.explain` returns.

    Attributes:
        parameters: one entry each, in the order of the model.
    """

    parameters: tuple[Held, ...]

    @property
    def text(self) -> str:
        """A table: parameter, shape, what is held, how, and what each strategy takes, ``predicted|measured`` in ms."""
        if not self.parameters:
            return "No private backward has run yet."
        width = max(len(one.name) for one in self.parameters)
        lines = [
            f"{one.name:<{width}}  {'×'.join(map(str, one.shape)) or 'scalar':>16}  {one.held / 1e6:8.2f} MB  "
            f"{one.strategy}" + (f" ({one.line})" if one.line else "")
            for one in self.parameters
        ]
        total = sum(one.held for one in self.parameters) / 1e6
        lines.append(f"{'together':<{width}}  {'':>16}  {total:8.2f} MB")
        return "\n".join(lines)


class Note(NamedTuple):
    """What is kept of a use for an explanation: nothing of its numbers.

    Attributes:
        strategy: in words.
        held: bytes.
        shape: of the parameter.
        product: its sizes, if it is a matrix product's.
        tried: under which key its forms were timed, if that is not its product's.
        device: where it was.
        dtype: in which its norms are computed.
    """

    strategy: str
    held: int
    shape: torch.Size
    product: Product | None
    tried: Hashable
    device: torch.device
    dtype: torch.dtype

    def explain(self, name: str, *, measure: bool) -> Held:
        predicted: dict[str, float] = {}
        key: Hashable = None
        if self.product is not None:
            seconds = costs_of(self.device, self.dtype).seconds(self.product)
            predicted = {each: 1e3 * found for each, found in seconds.items()}
            if measure:
                time_product(self.product, self.device, self.dtype)
            key = product_key(self.product, self.device, self.dtype)
        measured = TUNER.found.get(key if self.tried is None else self.tried, {})
        return Held(name, tuple(self.shape), self.strategy, self.held, predicted, dict(measured))


def note(use: Use) -> Note:
    """Describe a use, without keeping anything of it."""
    strategy, numbers, size = _described(use)
    return Note(strategy, size, use.shape, use.product, use.tried, numbers.device, wide_dtype(numbers))


def _described(use: Use) -> tuple[str, torch.Tensor, int]:
    """How a use is held, in words; numbers of the kind that it is held in; and bytes."""
    if type(use) is Dense:  # asked of every use of every step: an abstract class takes its time over isinstance
        return "whole gradients of single samples", use.gradients, use.gradients.nbytes
    if type(use) is Outer:
        positions = use.a.shape[1]
        how = "norms of inputs and output gradients" if positions == 1 else f"Gram matrices of {positions} positions"
        if use.formed:
            how = "whole gradients of single samples, formed for the norm"
        return how, use.a, use.a.nbytes + use.g.nbytes
    if isinstance(use, Patches):
        pixels = use.way == "pixels"
        how = "Gram matrices of pixels" if pixels else "whole gradients of single samples, formed for the norm"
        return how, use.x, use.x.nbytes + use.g.nbytes
    if isinstance(use, Gather):
        return "sums over the rows that each sample looked up", use.g, use.ids.nbytes + use.g.nbytes
    if isinstance(use, Routed):
        return "Gram matrices within each expert", use.a, use.a.nbytes + use.g.nbytes
    if isinstance(use, TableAndHead):
        _, kind, table = _described(use.table)
        return "table and head together, by their inner products", kind, table + _described(use.head)[2]
    return type(use).__name__, use.parts[0], 0


def _times(predicted: float | None, measured: float | None) -> str:
    return "|".join("?" if each is None else f"{each:.2f}" for each in (predicted, measured)) + " ms"
