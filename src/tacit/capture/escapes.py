"""Tensors that combine samples, and leave a forward where nobody searches: an attribute, an object, a closure.

What a forward returns is looked at; what it leaves elsewhere cannot be. So such a tensor refuses a gradient: within the
forward nothing that may be put out depends on it, and only what went out by another way can send one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor
from torch.utils.weak import TensorWeakRef

from tacit.capture.marks import Mark, keep_mark, map_tensors, mark_of
from tacit.errors import MixingError


class Escapes:
    """Watches the tensors of one forward that no gradient may come to."""

    def __init__(self) -> None:
        self._sums: list[TensorWeakRef] = []

    def look_at(self, value: Tensor, mark: Mark, where: Callable[[], str]) -> None:
        """Look at a tensor without a layout that a call put out or wrote into.

        Args:
            value: the tensor.
            mark: its mark.
            where: names the module that is running.
        """
        if not value.requires_grad:
            return
        if not mark.reduced:
            _refuse_gradient(value, mark, where())
        elif value.dim() > 0:
            self._sums.append(TensorWeakRef(value))

    def copied_views(self, out: Any) -> Any:
        """Return outputs, copied where they are views of sums over the batch, which may then go."""
        return map_tensors(self._copied_if_view, out) if self._sums else out

    def _copied_if_view(self, value: Tensor) -> Tensor:
        if value._base is None or not any(ref() is value._base for ref in self._sums):
            return value
        return keep_mark(value, value.clone())

    def end(self, where: str) -> None:
        """The forward is over: sums over the batch that are kept somewhere, as vectors, were not put out.

        They are no step on the way to a loss: what is linear in them saves nothing, so that those are gone by now.
        """
        kept = [value for ref in self._sums if (value := ref()) is not None]
        self._sums.clear()
        for value in kept:
            mark = mark_of(value)
            if mark is not None and mark.layout is None:
                _refuse_gradient(value, mark, where)


def _refuse_gradient(value: Tensor, mark: Mark, where: str) -> None:
    kind, shape = ("combines different samples" if mark.mixed else "has lost its samples"), tuple(value.shape)

    def refuse(_: Tensor) -> NoReturn:
        raise MixingError(
            f"a gradient came to a tensor {shape} that {kind} of the batch since `{mark.lost}` (in {where}), and that "
            "left the forward by another way than as an output: an attribute, an object that is no list, mapping or "
            "dataclass. A sample then moves the gradients of others, and clipping bounds nothing. detach() what is "
            "only logged; leave out auxiliary losses over the whole batch, or compute them for each sample."
        )

    value.register_hook(refuse)
