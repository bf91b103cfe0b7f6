"""Two passes over a forward, whatever the loss: its graph ends at a boundary behind the model's outputs.

The backward of the loss stops there and leaves the outputs' gradients. When autograd reaches the carrier, they are sent
through the model twice: for the norms first, then for the clipped sums. Nothing is held but them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tacit.capture.guard import LeakGuard
from tacit.capture.marks import keep_mark, map_tensors, tensors_in
from tacit.capture.passes import Pass, Term
from tacit.errors import MemoryBudgetError, PrivacyError


class Boundary(torch.autograd.Function):
    """The outputs' values, behind which the model's graph is out of the outer backward's sight."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, run: Pass, term: Term) -> tuple[Tensor, ...]:
        ctx.run, ctx.term = run, term
        ctx.shared = [(value, value._version) for value in _sharing(term.outputs)]
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
        if any(value._version != version for value, version in ctx.shared):
            raise MemoryBudgetError(
                "outputs of the model that share memory were changed in place after its forward: behind the boundary "
                "that this memory_budget needs, a change of one is not seen in the gradient of the other. Change a "
                "copy, or raise memory_budget."
            )
        ctx.run.deposit(ctx.term, gradients)
        return None, None, None


def bounded(out: Any, run: Pass, carrier: Tensor, guard: LeakGuard) -> Any:
    """Return a forward's output behind a boundary.

    Raises:
        MemoryBudgetError: two passes cannot be run over this forward.
        LeakError: an output depends on a private parameter by a way that does not pass the clipping.
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
    alone = [guard.check_graph(value, carrier) for value in chosen.values()]  # each, for a leak is worse
    if not all(alone):
        raise MemoryBudgetError(
            "an output of the model depends on something else that wants a gradient (a parameter that the private "
            "optimizer does not step, or a tensor from outside), to which two passes would give none. Freeze or "
            "detach() it, or raise memory_budget, so that one pass is run."
        )
    values = Boundary.apply(carrier, run, Term(tuple(chosen.values()), carrier))
    behind = dict(zip(chosen, values, strict=True))
    return map_tensors(lambda value: keep_mark(value, behind.get(id(value), value)), out)


def _sharing(values: tuple[Tensor, ...]) -> list[Tensor]:
    """Those that share memory with another one."""
    addresses = [value.untyped_storage().data_ptr() for value in values]
    return [value for value, address in zip(values, addresses, strict=True) if addresses.count(address) > 1]
