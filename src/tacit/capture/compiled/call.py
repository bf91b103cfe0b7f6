"""One private forward that runs as a graph, and what the graph's inputs are in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor

from tacit.capture.contact import Frame, Names
from tacit.capture.marks import mark_of, tensors_in
from tacit.errors import NoRuleError, PrivacyError


class Kind(Enum):
    """What an input of a graph is."""

    PRIVATE = "a parameter that the optimizer steps"
    BATCH = "an input with the batch"
    CONSTANT = "a constant: it gets no gradient"
    NUMBER = "no tensor"


@dataclass(frozen=True, slots=True)
class Role:
    """What one input of a graph is.

    Attributes:
        kind: of which kind.
        name: the name of the parameter.
        dim: where the batch is.
    """

    kind: Kind
    name: str = ""
    dim: int = 0


@dataclass(slots=True)
class Call:
    """One private forward that is running as a graph.

    Attributes:
        frame: its pass and carrier.
        path: the name of the module.
        where: its name and kind.
        names: which parameters are private.
        batch: in which dimension inputs carry the batch, by identity.
        ran: how many graphs have run.
    """

    frame: Frame
    path: str
    where: str
    names: Names
    batch: Mapping[int, int]
    ran: int = field(default=0)

    def role(self, value: Any) -> Role:
        """What an input of a graph is.

        Raises:
            PrivacyError: it wants a gradient, and is neither of the batch nor a parameter; or it is of a batch, and
                not an argument.
        """
        if not isinstance(value, Tensor):
            return Role(Kind.NUMBER)
        dim = self.batch.get(id(value))
        if dim is not None:
            return Role(Kind.BATCH, dim=dim)
        if mark_of(value) is not None:
            raise NoRuleError(
                f"the compiled {self.path} reads a tensor {tuple(value.shape)} of the batch, or of an earlier one, "
                "that is not among its arguments: where its samples are cannot be told. Pass it as an argument."
            )
        if not value.requires_grad or id(value) in self.names.others:
            return Role(Kind.CONSTANT)
        name = self.names.private.get(id(value))
        if name is None:
            raise PrivacyError(
                f"the compiled {self.path} uses a trainable tensor of shape {tuple(value.shape)} that is neither a "
                "parameter that the model had when it was made private nor an input with the batch: its gradient would "
                "be released unclipped. Register it as a parameter before make_private(), or detach() it."
            )
        return Role(Kind.PRIVATE, name)


def places_of(inputs: Any, samples: int, path: str) -> dict[int, int]:
    """In which dimension the marked inputs of a forward carry the batch, by identity.

    Raises:
        NoRuleError: the rows of one are not simply the samples.
    """
    places = {}
    for value in tensors_in(inputs):
        mark = mark_of(value)
        if mark is None:
            continue
        plain = mark.layout is not None and mark.layout.owner is None and not mark.pointer
        if not plain or mark.layout is None or mark.layout.rows != samples:
            raise NoRuleError(
                f"an input {tuple(value.shape)} of the compiled {path} comes from another private forward, and its "
                "rows are not simply the samples of the batch. Call the original model."
            )
        places[id(value)] = mark.layout.dim
    return places


def pattern_of(inputs: Any, places: Mapping[int, int]) -> str:
    """Where the batch is in each input, as something that dynamo compares from call to call."""
    dims: Sequence[int | None] = [places.get(id(value)) for value in tensors_in(inputs)]
    return " ".join("-" if dim is None else str(dim) for dim in dims)
