"""Two passes over a forward, whatever the loss: its graph ends at a boundary behind the model's outputs.

The backward of the loss stops there and leaves the outputs' gradients. When autograd reaches the carrier, they are sent
through the model twice: for the norms first, then for the clipped sums. Nothing is held but them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tacit.capture.marks import map_tensors, mark_of, set_mark, tensors_in
from tacit.capture.passes import Pass, Term
from tacit.errors import MemoryBudgetError, PrivacyError


class Boundary(torch.autograd.Function):
    """The outputs' values, behind which the model's graph is out of the outer backward's sight."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, run: Pass, term: Term) -> tuple[Tensor, ...]:
        ctx.run, ctx.term = run, term
        ctx.set_materialize_grads(False)
        return tuple(value.detach() for value in term.outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        if ctx.run.sink is not None:
            raise PrivacyError(
                "a private forward reads, by a way other than its arguments, what an earlier one put out. Under this "
                "memory_budget each is differentiated twice, and the samples of the earlier would count twice. Give "
                "it as an argument, or detach() it."
            )
        ctx.run.deposit(ctx.term, gradients)
        return None, None, None


def bounded(out: Any, run: Pass, carrier: Tensor) -> Any:
    """Return a forward's output behind a boundary.

    Raises:
        MemoryBudgetError: two passes cannot be run over this forward.
    """
    if run.plain_only:
        raise MemoryBudgetError(
            f"the forward would hold about {run.room.expected / 1e6:.0f} MB for the clip, more than memory_budget. Two "
            "passes, which hold nothing, cannot be run over it, because an input requires a gradient (perhaps it is "
            "another private forward's output: make both one module), or because of checkpointing with "
            "use_reentrant=True. Change that, use clipping='per_layer', smaller physical batches "
            "(BatchMemoryManager), or raise memory_budget."
        )
    chosen = {id(value): value for value in tensors_in(out) if value.requires_grad}
    if not chosen:
        return out
    values = Boundary.apply(carrier, run, Term(tuple(chosen.values()), carrier))
    behind = dict(zip(chosen, values, strict=True))
    return map_tensors(lambda value: _marked(value, behind.get(id(value), value)), out)


def _marked(before: Tensor, after: Tensor) -> Tensor:
    mark = mark_of(before)
    if mark is not None and after is not before:
        set_mark(after, mark)
    return after
