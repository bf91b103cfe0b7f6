"""How uses leave a compiled graph: as the gradients of inputs that are there for nothing else.

A compiled function can return from its backward one thing only: gradients of its inputs. So each tensor of a use gets
an input of its shape, a *slot* (one number, expanded), of which the forward reads nothing. Inside, :class:`Inside`
joins all slots into the carrier that rules take, and its backward returns the uses' tensors as the slots' gradients.
Outside, :class:`Outside` makes the slots from the pass's carrier, and its backward records the uses in the pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tacit.capture.compiled.parts import Form, take_apart
from tacit.capture.passes import Pass
from tacit.errors import NoRuleError, PrivacyError
from tacit.rules.contact import refuse_double_backward
from tacit.uses import Use


class Recorder:
    """Takes the uses of one traced backward, in order.

    Attributes:
        forward_done: the forward has been traced. What comes before is of a backward within it.
    """

    def __init__(self) -> None:
        self.forward_done = False
        self.forms: list[Form] = []
        self.parts: list[Tensor] = []

    def take(self, name: str, use: Use) -> None:
        if not self.forward_done:
            raise NoRuleError(
                f"a gradient of `{name}` is taken within a compiled forward (torch.autograd.grad): it would be "
                "recorded beside that of the loss. Call the original model."
            )
        form, parts = take_apart(name, use)
        self.forms.append(form)
        self.parts += parts


class Inside(torch.autograd.Function):
    """From the slots to the carrier of a traced forward."""

    @staticmethod
    def forward(ctx: Any, recorder: Recorder, expected: list[Form] | None, *slots: Tensor) -> Tensor:
        ctx.settings = recorder, expected
        return slots[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _g: Tensor) -> tuple[Any, ...]:
        recorder, expected = ctx.settings
        if expected is None:  # the trial, which is to find out
            return (None,) * len(ctx.needs_input_grad)
        if recorder.forms != expected:
            raise PrivacyError(
                "a compiled forward used its parameters in another way than it did a moment before, so that gradients "
                "would be taken for those of other parameters. Call the original model."
            )
        return None, None, *recorder.parts


class Outside(torch.autograd.Function):
    """From the carrier of a pass to the slots of one compiled forward."""

    @staticmethod
    def forward(
        ctx: Any, carrier: Tensor, run: Pass, forms: list[Form], likes: list[tuple[torch.Size, torch.dtype]]
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.settings = run, forms, [shape for shape, _ in likes]
        return tuple(carrier.new_zeros((), dtype=dtype).expand(shape) for shape, dtype in likes)

    @staticmethod
    def backward(ctx: Any, *parts: Tensor | None) -> tuple[None, ...]:
        refuse_double_backward()
        run, forms, shapes = ctx.settings
        if any(part is None or part.shape != shape for part, shape in zip(parts, shapes, strict=True)):
            raise PrivacyError(
                "a compiled backward left out gradients of the private model: some samples' norms would be too small. "
                "Call the original model."
            )
        record(run, forms, [part for part in parts if part is not None])
        return None, None, None, None


def record(run: Pass, forms: Sequence[Form], parts: Sequence[Tensor]) -> None:
    """Put uses together and hand them to the pass."""
    left = iter(parts)
    for form in forms:
        use = form.build([next(left) for _ in range(form.count)], run.room, table=form.name in run.tables)
        run.add(form.name, use, None)
