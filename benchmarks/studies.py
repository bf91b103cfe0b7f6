"""What the scaling study trains, and what theory says of its cost.

A linear layer of T positions, d inputs and p outputs takes ``6·B·T·d·p`` operations forward and backward. To clip it,
either whole gradients of single samples take the place of the weight's, which adds no arithmetic but is written once
and read twice, or Gram matrices add ``2·B·T²·(d + p)`` operations. Half of these would do, as they are symmetric. That
is at most one sixth of the layer's own wherever a sample's inputs and output gradients, T·(d + p) numbers, are no more
than its whole gradient, d·p.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.cases import CLASSES, Case, labels, token_loss
from tacit.uses import DEFAULT_COSTS, Product

ITEM = 4  # bytes


@dataclass(frozen=True)
class Theory:
    """The cost of one step, by size.

    Attributes:
        operations: forward and backward.
        clip_operations: what clipping adds to these.
        clip_bytes: written or read by the clip beyond what a plain step does.
        parameters: each gets noise.
        form: what the clip reads: "whole" gradients of samples, or "Gram" matrices.
    """

    operations: float
    clip_operations: float
    clip_bytes: float
    parameters: float
    form: str

    @property
    def clip_seconds(self) -> float:
        """At the rates of the cost model that chooses between the forms: only its growth is compared."""
        rates = DEFAULT_COSTS
        return self.clip_operations / rates.flops_per_second + self.clip_bytes / rates.far_bytes_per_second

    @property
    def ratio(self) -> float:
        """The private step's arithmetic over the plain one's."""
        return 1 + self.clip_operations / self.operations


@dataclass(frozen=True)
class Study:
    """One dimension that doubles, all others fixed.

    Attributes:
        about: the dimension in words.
        case: the model at its base sizes.
        argument: which of the sizes it is.
        values: from small to large.
        theory: of the sizes.
    """

    about: str
    case: Case
    argument: str
    values: tuple[int, ...]
    theory: Callable[..., Theory]

    def at(self, value: int) -> Case:
        """The case in which the dimension has this value."""
        return replace(self.case, sizes={**self.case.sizes, self.argument: value})

    def theory_at(self, value: int) -> Theory:
        return self.theory(**self.at(value).sizes)


class Stack(nn.Module):
    """Linear layers d → p → d → … on ``(B, T, d)``, with ReLU, and a classifier of the mean over positions."""

    def __init__(self, inputs: int, outputs: int, layers: int) -> None:
        super().__init__()
        widths = [outputs if index % 2 else inputs for index in range(layers + 1)]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


class TiedLanguage(nn.Module):
    """A table of token vectors, a linear layer, and the table again as output layer: ``(B, T)`` ids → ``(B, T, V)``."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(F.relu(self.mix(self.tokens(ids))), self.tokens.weight)


def _stack(batch: int, positions: int, inputs: int, outputs: int, layers: int) -> tuple[nn.Module, TensorDataset]:
    return Stack(inputs, outputs, layers), TensorDataset(torch.randn(batch, positions, inputs), labels(batch))


def _tied(batch: int, positions: int, vocabulary: int, width: int) -> tuple[nn.Module, TensorDataset]:
    ids = torch.randint(vocabulary, (batch, positions))
    return TiedLanguage(vocabulary, width), TensorDataset(ids, ids)


def stack_theory(batch: int, positions: int, inputs: int, outputs: int, layers: int) -> Theory:
    product = batch * positions * inputs * outputs
    seconds = DEFAULT_COSTS.seconds(Product(batch, positions, inputs, outputs, ITEM))
    whole = positions > 1 and seconds["stored"] < seconds["gram"]
    return Theory(
        operations=(6 * layers - 2) * product,  # the first layer's input wants no gradient
        clip_operations=0 if whole else layers * _gram_operations(batch, positions, inputs, outputs),
        clip_bytes=layers * 3 * ITEM * batch * inputs * outputs if whole else 0,
        parameters=layers * inputs * outputs,
        form="whole" if whole else "Gram",
    )


def tied_theory(batch: int, positions: int, vocabulary: int, width: int) -> Theory:
    return Theory(
        operations=6 * batch * positions * width * (vocabulary + width),
        clip_operations=_gram_operations(batch, positions, width, vocabulary),
        clip_bytes=0,
        parameters=vocabulary * width,
        form="Gram",  # a table that is looked up as well is never formed whole
    )


def _gram_operations(batch: int, positions: int, inputs: int, outputs: int) -> int:
    return 2 * batch * positions**2 * (inputs + outputs)


_STACK = Case(
    "stack", "linear layers", _stack, {"batch": 32, "positions": 64, "inputs": 256, "outputs": 256, "layers": 4}
)
_TIED = Case(
    "tied",
    "a table that is the output layer too",
    _tied,
    {"batch": 8, "positions": 64, "vocabulary": 4000, "width": 128},
    criterion=token_loss,
)

STUDIES = {
    "B": Study("batch", _STACK, "batch", (8, 16, 32, 64, 128), stack_theory),
    "T": Study("positions", _STACK, "positions", (16, 32, 64, 128, 256), stack_theory),
    "d": Study("inputs", _STACK, "inputs", (64, 128, 256, 512, 1024), stack_theory),
    "p": Study("outputs", _STACK, "outputs", (64, 128, 256, 512, 1024), stack_theory),
    "V": Study("vocabulary, tied", _TIED, "vocabulary", (1000, 2000, 4000, 8000, 16_000), tied_theory),
    "layers": Study("layers", _STACK, "layers", (2, 4, 8, 16), stack_theory),
}
