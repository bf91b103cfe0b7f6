"""Gates hand clipped sums to autograd as ordinary gradients; the carrier makes it clip first.

Every rule takes the carrier as an input, the carrier is made from all gates' tokens, and each gate is made from
one parameter. So autograd runs the rules' backwards, then the carrier's, then each gate's, whose result is the
parameter's gradient: accumulation, hooks and reducers see nothing unusual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tacit.capture.guard import LeakGuard
from tacit.capture.passes import Pass
from tacit.distributed import is_spread
from tacit.rules.contact import in_type
from tacit.uses import SMALL


class Gate(torch.autograd.Function):
    """From a parameter to a token; backward returns the parameter's clipped sum.

    Of a sharded parameter it is this process's shard of the sum over all processes. Gates run in the reverse order in
    which they were made, so that all processes add up the same parameter.
    """

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, run: Pass, name: str, guard: LeakGuard) -> Tensor:
        # Only what backward needs to make a gradient of the right kind: not the parameter itself.
        ctx.settings = run, name, guard, parameter.shape, parameter.dtype, parameter.device
        return torch.zeros((), device=parameter.device)

    @staticmethod
    def backward(ctx: Any, _token: Tensor) -> tuple[Tensor, None, None, None]:
        run, name, guard, *kind = ctx.settings
        (gradient,) = _returned(run, [name], guard, [kind])
        return gradient, None, None, None


class JointGate(torch.autograd.Function):
    """The gates of several small parameters in one: each by itself costs more in calls than in arithmetic."""

    @staticmethod
    def forward(ctx: Any, run: Pass, names: Sequence[str], guard: LeakGuard, *parameters: Tensor) -> Tensor:
        ctx.settings = run, names, guard, [(p.shape, p.dtype, p.device) for p in parameters]
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, _token: Tensor) -> tuple[Tensor | None, ...]:
        run, names, guard, kinds = ctx.settings
        return None, None, None, *_returned(run, names, guard, kinds)


def _returned(run: Pass, names: Sequence[str], guard: LeakGuard, kinds: Sequence[Any]) -> list[Tensor]:
    """What gates return, and the guard expects: clipped sums, each of its parameter's ``(shape, dtype, device)``."""
    totals = [_settled(run, name, *kind) for name, kind in zip(names, kinds, strict=True)]
    gradients = [in_type(total, dtype) for total, (_, dtype, _) in zip(totals, kinds, strict=True)]
    guard.expect(names, gradients, totals)
    return gradients


def _settled(run: Pass, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a gate returns, in the type of the sum."""
    assert run.clipped is not None
    total = run.clipped.sum(name)
    if total is None:
        total = torch.zeros(shape, dtype=dtype, device=device)
    if is_spread(total):  # it is settled already
        return total
    return run.settle(name, total if total.shape == shape else total.reshape(shape))


class Carrier(torch.autograd.Function):
    """From all tokens to a scalar that every rule takes; backward clips."""

    @staticmethod
    def forward(ctx: Any, run: Pass, *tokens: Tensor) -> Tensor:
        ctx.run = run
        ctx.tokens = len(tokens)
        return tokens[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        ctx.run.finish()
        return None, *[torch.zeros((), device=g.device)] * ctx.tokens


class Tie(torch.autograd.Function):
    """Identity that makes an output depend on the carrier.

    Reentrant checkpointing hides the rules of its block from the outer graph. Autograd would then not know of the
    carrier; tied to an output it does, and runs it last, as its oldest node.
    """

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        return None, g


def tie(carrier: Tensor, value: Tensor) -> Tensor:
    """Return ``value``, tied to the carrier if it has a graph at all."""
    if not value.requires_grad:
        return value
    tied: Tensor = Tie.apply(carrier, value)
    return tied


def make_carrier(run: Pass, parameters: Mapping[str, Tensor], guard: LeakGuard) -> Tensor:
    """Return the carrier of a pass over the given trainable parameters (at least one), which the guard then watches."""
    spread = any(is_spread(p) for p in parameters.values())
    few = [] if spread else [name for name, p in parameters.items() if p.numel() <= SMALL]
    joint = set(few) if len(few) > 1 and len({parameters[name].device for name in few}) == 1 else set()
    tokens = []
    for name, parameter in parameters.items():
        if name not in joint:
            token = Gate.apply(parameter, run, name, guard)
            guard.watch(name, parameter, token.grad_fn.next_functions[0][0])  # one that was unfrozen is new to it
            tokens.append(token)
    if joint:
        chosen = [parameters[name] for name in few]
        token = JointGate.apply(run, few, guard, *chosen)
        for name, parameter, edge in zip(few, chosen, token.grad_fn.next_functions[-len(few) :], strict=True):
            guard.watch(name, parameter, edge[0])
        tokens.append(token)
    carrier: Tensor = Carrier.apply(run, *tokens)
    return carrier
