"""A contact: one torch call in which the batch meets trainable parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, NoReturn

import torch
from torch import Tensor

from tacit.errors import MixingError, NoRuleError
from tacit.uses import Dense, Layout, Room, Use

_C = torch._C._functorch

SENTINEL = torch.zeros(3, 1, 2, 1, 1)
"""Every rule saves this first. Activation checkpointing compares what is saved when it recomputes; a recomputation in
which the call did not go to its rule can then never be taken for one in which it did. (A broadcast call saves the same
values either way.)"""


class RuleFunction(torch.autograd.Function):
    """An autograd function of a rule. It is applied once for each layer, without what others' ``apply`` has to do."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        values = [_C.unwrap_if_dead(value) if isinstance(value, Tensor) else value for value in args]
        # What it comes down to where no transform is active.
        return super(torch.autograd.Function, cls).apply(*values)  # type: ignore[misc]


class Slot(ABC):
    """Takes the uses of one parameter. Rules record here, in their backward, and know nothing else of it."""

    @property
    def table(self) -> bool:
        """Whether rows of the parameter were looked up in this pass: another use is joined with those."""
        return False

    @property
    def alone(self) -> bool:
        """Whether forwards promised a single use of the parameter, which is joined with no other. For backwards."""
        return False

    @property
    def room(self) -> Room:
        """How much may be held of uses until the clip."""
        return Room()

    @property
    def deferred(self) -> bool:
        """Whether uses leave a graph as tensors: a rule then records what it has and forms nothing dense of it."""
        return False

    def expect(self, size: Callable[[], int]) -> None:
        """Say how many bytes a use will hold at least. In a graph of any batch size there is no such number."""
        if not self.deferred:
            self.room.expect(size())

    def looked_up(self) -> None:  # noqa: B027  only the parameter itself can be a table
        """Rows of the parameter are looked up in this forward."""

    def record_rows(self, g: Tensor, dim: int, layout: Layout) -> None:
        """Hand over the gradient ``g`` of a value that has a row for each row of the batch, in dimension ``dim``."""
        rows = torch.arange(layout.rows, device=g.device)
        dense = g.new_zeros((layout.samples, *g.shape))
        dense.movedim(dim + 1, 1)[layout.owners(g.device), rows] = g.movedim(dim, 0)
        self.record(Dense(dense))

    @abstractmethod
    def record(self, use: Use) -> None:
        """Hand over the per-sample gradients of one call; samples with respect to the summed loss."""


class Contact(ABC):
    """What a rule may know of the call it handles.

    Attributes:
        function: the torch function that was called.
        carrier: a scalar that every rule passes to its autograd function as first input and to which it returns
            None: it makes autograd run the clipping after the rule's backward.
    """

    function: Callable[..., Any]
    carrier: Tensor

    @abstractmethod
    def layout(self, value: object) -> Layout | None:
        """Return where the samples are in ``value``; None if it does not depend on the batch."""

    @abstractmethod
    def slot(self, value: object) -> Slot | None:
        """Return where to record uses of ``value``; None if it is not a trainable private parameter."""

    @abstractmethod
    def before_expansion(self, value: Tensor, dim: int) -> Tensor:
        """Undo an ``expand`` of a parameter along ``dim``: return the tensor of size 1 there, or ``value``."""

    @abstractmethod
    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a torch function as if the module had: rules that rewrite a call into others use this."""

    @abstractmethod
    def mark(self, value: Tensor, layout: Layout) -> None:
        """Say where the samples are in an output of the rule. Without it the call is followed as any other."""

    @abstractmethod
    def where(self) -> str:
        """Name the module and the parameters of this call, for errors."""

    def batch_layout(self, value: Tensor, *, features: int = 0) -> Layout:
        """Return the layout of the batch tensor ``value``, whose last ``features`` dimensions are features.

        Raises:
            NoRuleError: ``value`` does not depend on the batch, so this rule does not fit.
            MixingError: the samples lie in a feature dimension, so that the call mixes them.
        """
        layout = self.layout(value)
        if layout is None:
            self.refuse("the operand that depends on the batch is not where the rule expects it")
        if layout.dim >= value.dim() - features:
            if layout.samples == 1 and value.dim() > features:
                return Layout(1, 0, inner=value.shape[0])  # all rows are its, in any dimension
            raise MixingError(
                f"{self.where()}: the batch lies in dimension {layout.dim} of an input of shape {tuple(value.shape)}, "
                "which this call mixes, so samples have no gradient of their own. Check batch_first, or give "
                "the input a batch dimension in front."
            )
        return layout

    def refuse(self, reason: str) -> NoReturn:
        found = f"no rule for {self.where()}: {reason}"
        raise NoRuleError(
            f"N{found[1:]}. Its gradient would be released unclipped. Freeze the parameter, rewrite the call, or add a "
            "rule (tacit.register_rule).",
            found,
        )


def detached(value: Tensor | None) -> Tensor | None:
    """The value of a parameter without its graph: rules return its gradient through slots, never natively."""
    return None if value is None else value.detach()


def in_type(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value.to(dtype)``, with no call where nothing is to be done."""
    return value if value.dtype == dtype else value.to(dtype)


def autocasts(device: torch.device) -> bool:
    """Whether calls on this device choose their types themselves. Some devices ("meta") know no autocast."""
    kind = device.type
    return _knows_autocast(kind) and torch.is_autocast_enabled(kind)


@cache
def _knows_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)


def in_own_types(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Run a rule's backward without autocast, which may be on around ``loss.backward()``.

    Each rule keeps what its forward computed with, in the type of its output, in which gradients come. So all types are
    settled, and autocast would bring a second one in: products that fail, or that are less exact than their operands.
    """

    @wraps(backward)
    def run(ctx: Any, *gradients: Tensor) -> Any:
        device = gradients[0].device
        if not autocasts(device):
            return backward(ctx, *gradients)
        with torch.autocast(device.type, enabled=False):
            return backward(ctx, *gradients)

    return run


def refuse_double_backward() -> None:
    """Raise if a rule's backward is itself being recorded (``create_graph=True``)."""
    if torch.is_grad_enabled():
        raise NoRuleError(
            "backward(create_graph=True) went through a private model. Second derivatives with respect to its "
            "parameters would bypass the clipping. Leave gradient penalties out, or bound the slope another way "
            "(spectral_norm)."
        )
