"""Gates hand clipped sums to autograd as ordinary gradients; the carrier makes it clip first.

Every rule takes the carrier as an input, the carrier is made from all gates' tokens, and each gate is made from
one parameter. So autograd runs the rules' backwards, then the carrier's, then each gate's, whose result is the
parameter's gradient: accumulation, hooks and reducers see nothing unusual.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tacit.capture.guard import LeakGuard
from tacit.capture.passes import Pass
from tacit.distributed import is_spread


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
        run, name, guard, shape, dtype, device = ctx.settings
        total = run.clipped.sum(name)
        if total is None:
            total = torch.zeros(shape, dtype=dtype, device=device)
        if not is_spread(total):  # not settled yet
            total = run.settle(name, total.reshape(shape))
        gradient = total.to(dtype)
        guard.expect(name, gradient, total)
        return gradient, None, None, None


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
    tokens = []
    for name, parameter in parameters.items():
        token = Gate.apply(parameter, run, name, guard)
        guard.watch(name, parameter, token.grad_fn.next_functions[0][0])  # one that was unfrozen since is new to it
        tokens.append(token)
    carrier: Tensor = Carrier.apply(run, *tokens)
    return carrier
