"""A pass: all forwards that one backward differentiates together, and the uses that backward records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

from tacit.errors import SecondBackwardError
from tacit.sampling import Piece
from tacit.uses import Room, Units, Use

if TYPE_CHECKING:
    from tacit.capture.crossings import Crossing


_within: ContextVar[int | None] = ContextVar("_within", default=None)  # each thread has its own backwards


def current_task() -> int:
    """The number of the backward that is running, -1 outside any. What is pulled back within it belongs to it."""
    outer = _within.get()
    return torch._C._current_graph_task_id() if outer is None else outer


@contextmanager
def within_task() -> Iterator[None]:
    """For backwards of our own: checkpoints that they recompute belong to the backward around them."""
    token = _within.set(current_task())
    try:
        yield
    finally:
        _within.reset(token)


class ClippedSums(Protocol):
    """What the clipping hands to the gates."""

    def sum(self, name: str) -> Tensor | None:
        """Return the clipped sum of one parameter, None if it had no use. Each is asked for once."""


@dataclass(frozen=True, slots=True)
class Term:
    """Values that wait, with their graph, outside the outer one for two passes over them.

    Attributes:
        outputs: the values: a forward's outputs, or per-sample losses.
        carrier: the carrier of their pass.
    """

    outputs: tuple[Tensor, ...]
    carrier: Tensor


Deposit = tuple[Term, tuple[Tensor | None, ...]]
"""A term, and the gradients that reached its values."""


class EarlyClip(Protocol):
    """Takes uses as they come, to clip some before the others."""

    @property
    def busy(self) -> bool:
        """Whether any have come in this backward."""

    def take(self, name: str, use: Use) -> None: ...

    def restart(self) -> None:
        """What came before is of a backward that was not finished."""


class Clip(Protocol):
    """Turns the uses of one backward into clipped sums; the engine provides it."""

    def __call__(self, run: Pass, recorded: Mapping[str, list[Use]]) -> ClippedSums: ...

    @property
    def holds(self) -> bool:
        """Whether uses are held until the last of a backward has come."""

    @property
    def makes_sums_early(self) -> bool:
        """Whether clipped sums are made before their gates ask for them."""

    def early(self, run: Pass) -> EarlyClip | None:
        """Who takes the uses of private parameters at once; None if nobody."""


Settle = Callable[[str, Tensor], Tensor]

Finish = Callable[["Pass", Mapping[str, list[Use]]], ClippedSums]

Crossings: TypeAlias = "dict[object, list[list[Crossing | None]]]"
Promises: TypeAlias = "tuple[dict[str, int], Crossings, int]"


class Pass:
    """Collects uses by parameter name.

    Attributes:
        samples: number of samples in the batch.
        dummy: the batch was empty and one made-up sample stands in for it: it must contribute nothing.
        synthetic: none of its rows is a record.
        units: which rows are one unit of privacy; None if each is one by itself.
        padding: how many rows at the end are blank: they contribute nothing.
        piece: what the loader had handed out last when its forwards ran; None if nothing.
        inputs: the batch inputs of its outermost forwards, the first of each.
        contacts: how many uses of each parameter the forwards promised.
        tables: parameters of which rows were looked up.
        crossings: for each call of a checkpointed module, which outputs may be made of parameters alone.
        plain_only: two passes cannot be run over it (an input wants a gradient, or reentrant checkpointing).
        narrow: the types narrower than float32 in which forwards computed something of the batch.
        narrow_sums: those in which forwards computed sums or means over it, such as a loss.
        finished: the clipping has run.
        sink: where uses go instead, while two passes run.
        clipped: what the clipping made of the uses.
        early: who takes uses of parameters at once.
        room: how much may be held until the clip.
        forwards: how many outermost forwards it has seen.
        bounded: its outputs are behind a boundary: two passes will be run.
        settle: ``settle(name, total)`` makes of a parameter's clipped sum what its gate returns: of a sharded one the
            shard of the sum over all processes. Whoever has a sum early lets go of the whole by it.
        in_step: the forwards of all processes used the same parameters in the same order.
    """

    def __init__(
        self,
        samples: int,
        finish: Finish,
        *,
        early: Callable[[Pass], EarlyClip | None] = lambda _: None,
        room: Room | None = None,
        dummy: bool = False,
        synthetic: bool = False,
        units: Units | None = None,
        padding: int = 0,
        piece: Piece | None = None,
        settle: Settle = lambda _, total: total,
    ) -> None:
        self.samples = samples
        self.settle = settle
        self.in_step = True
        self.padding = padding
        self.piece = piece
        self.units = units
        self.dummy = dummy
        self.synthetic = synthetic
        self.contacts: dict[str, int] = {}
        self.tables: set[str] = set()
        self.crossings: Crossings = {}
        self.finished = False
        self.plain_only = False
        self.narrow: set[torch.dtype] = set()
        self.narrow_sums: set[torch.dtype] = set()
        self.sink: Callable[[str, Use], None] | None = None
        self.clipped: ClippedSums | None = None
        self.inputs: list[Tensor] = []
        self.room = room or Room()
        self.forwards = 0
        self.bounded = False
        self.early = early(self)
        self._clip = finish
        self._uses: dict[str, list[Use]] = {}
        self._terms: list[Deposit] = []
        self._terms_task = -1
        self._task = -1
        self._left: set[int] = set()
        self._roots: dict[int, int] = {}

    def settle_early(self, name: str, total: Tensor) -> Tensor:
        """Settle a sum as soon as it is whole, before its gate asks for it: if all processes do so in this order."""
        return self.settle(name, total) if self.in_step else total

    @property
    def clipped_units(self) -> int:
        """How many gradients are clipped: one for each unit, or else for each sample."""
        return self.samples if self.units is None else self.units.count

    @property
    def real_units(self) -> int:
        """How many of these are no stand-ins."""
        return 0 if self.dummy else self.clipped_units - self.padding

    def promise(self, name: str) -> None:
        self.contacts[name] = self.contacts.get(name, 0) + 1

    def promises(self) -> Promises:
        """What the forwards have promised so far."""
        crossings = {module: list(calls) for module, calls in self.crossings.items()}
        return dict(self.contacts), crossings, self.room.expected

    def take_back(self, before: Promises) -> None:
        """Forget what was promised since :meth:`promises`: the forward runs again."""
        contacts, crossings, self.room.expected = before
        self.contacts = dict(contacts)
        self.crossings = {module: list(calls) for module, calls in crossings.items()}

    def add(self, name: str, use: Use, recomputed_in: int | None) -> None:
        """Take one use.

        Args:
            name: the parameter.
            use: its per-sample gradients in one call.
            recomputed_in: the backward during which this call was recomputed by reentrant checkpointing, whose
                inner backward has a number of its own; None for a call of the original forward.
        """
        if self.sink is not None:
            self.sink(name, use)
            return
        task = current_task()
        if recomputed_in is not None:
            self._roots[task] = self._roots.get(recomputed_in, recomputed_in)
        if self._roots:
            task = self._roots.get(task, task)
        if self.finished:
            if task == self._task:
                raise SecondBackwardError(
                    f"a gradient of {name!r} arrived after the batch was clipped: checkpointing with "
                    "use_reentrant=True recomputed it too late. Use use_reentrant=False."
                )
            return  # a later backward; it is refused when it reaches the gates, and may want inputs' gradients only
        if self._left:
            self._refuse_resumed(task)
        if task != self._task:  # what an unfinished backward (saliency, an error) left behind is forgotten
            self._left.add(self._task)
            self._uses.clear()
            self._task = task
            self.room.open()
            if self.early is not None:
                self.early.restart()
        if self.early is not None and name in self.contacts:  # crossings have names of their own, and wait
            self.early.take(name, use)
        else:
            self._uses.setdefault(name, []).append(use)

    def _refuse_resumed(self, task: int) -> None:
        if task != -1 and task in self._left:
            raise SecondBackwardError(
                "a backward ran inside another one over the same forward (autograd.grad in a hook), and what the outer "
                "one had found was lost. Run them one after the other."
            )

    def root(self, task: int) -> int:
        """The outermost backward that a backward runs in, as far as recomputations have told."""
        return self._roots.get(task, task)

    def take(self, name: str) -> list[Use]:
        """Take away the uses recorded under a name."""
        return self._uses.pop(name, [])

    def finish(self) -> None:
        """Clip what this backward recorded. Called by autograd once all rules have run."""
        task = current_task()
        if self.finished:
            raise SecondBackwardError(
                "backward() ran a second time over one forward pass (or over two forwards that were not yet "
                "differentiated): each sample would be clipped twice and count up to twice its bound. Sum the "
                "losses and call backward() once, or run the forward again after the first backward()."
            )
        self._refuse_resumed(task)
        if self._task != task:  # what is left is of a backward that was not finished
            self._uses.clear()
            if self.early is not None:
                self.early.restart()
        uses = self._uses
        for crossing in (c for calls in self.crossings.values() for call in calls for c in call if c is not None):
            if crossing.name in uses:
                raise crossing.error("the checkpoint was not recomputed before the batch was clipped")
        self.clipped = self._clip(self, uses)
        self.finished = True
        self._task = task
        self._uses = {}
        self._roots = {}

    def deposit(self, term: Term, gradients: tuple[Tensor | None, ...]) -> None:
        """Take a term of the loss that is being differentiated, and the gradients that reached its values."""
        if current_task() != self._terms_task:  # an earlier backward failed
            self._terms.clear()
            self._terms_task = current_task()
        self._terms.append((term, gradients))

    def take_terms(self) -> list[Deposit]:
        terms, self._terms = (self._terms if current_task() == self._terms_task else []), []
        return terms
