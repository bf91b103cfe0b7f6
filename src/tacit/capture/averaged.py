"""The leak guard where DistributedDataParallel averages gradients over processes.

Between the gate and the optimizer DDP copies a gradient, sends it and writes the mean over all processes into
``.grad``. So the guard looks thrice. What arrives at the accumulation node must be what the gate returned. What leaves
for the other processes must then be this, added to what was in ``.grad``: nothing else gets between. And what DDP has
left in ``.grad`` at the end of the backward is remembered, and must be there at the step. That it is the mean of what
left is DDP's promise, with no communication hook but our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd import Variable

from tacit.capture.fingerprints import Fingerprint, are_alike, fingerprint, sum_fingerprint
from tacit.capture.guard import LeakGuard
from tacit.errors import PrivacyError


class AveragedGuard(LeakGuard):
    """Watches parameters whose gradients are averaged.

    Args:
        required: whether a gradient that was not averaged may not be released: there are other processes.
    """

    def __init__(self, *, required: bool) -> None:
        super().__init__()
        self._required = required
        self._watched: dict[str, Tensor] = {}
        self._due: dict[str, Fingerprint] = {}
        self._left: dict[str, Tensor] = {}
        self._pairs: list[tuple[str, Fingerprint, Fingerprint]] = []
        self._apart: set[str] = set()
        self._ending = False

    def _waits(self, gradient: Tensor) -> bool:  # noqa: ARG002
        return False  # all processes refuse at the same place

    def _prints(self, gradients: Sequence[Tensor]) -> Sequence[None]:
        return [None] * len(gradients)  # they do not stay as they come

    def _before(self, name: str, parameter: Tensor) -> Callable[[tuple[Tensor, ...]], None]:
        check = super()._before(name, parameter)
        self._watched[name] = parameter

        def note(gradients: tuple[Tensor, ...]) -> None:
            check(gradients)
            self._due[name] = sum_fingerprint(parameter, gradients[0], parameter.grad)
            self._left.pop(name, None)  # what left before this arrived was without it
            if not self._ending:
                self._ending = True
                # DDP writes its means in a callback of its own, queued during the backward or, in the first one of a
                # static graph, by another callback. So come after those that are queued by then.
                _at_end(lambda: _at_end(self._end))

        return note

    def _after(self, name: str, parameter: Tensor) -> Callable[..., None]:  # noqa: ARG002
        return lambda *_: None  # only the end of the backward tells

    def leaving(self, name: str, gradient: Tensor) -> None:
        """A gradient is about to be sent."""
        self._left[name] = sum_fingerprint(self._watched[name], gradient)

    def check_untouched(self, gradients: Mapping[str, Tensor]) -> None:
        """Raise unless gradients are as the last backward left them; see `LeakGuard.check_untouched`.

        DDP's buckets share one version among the gradients in them, so that each accumulation changes that of others:
        all are looked at when the first gradient of a backward arrives, and then their numbers alone.
        """
        if not self._ending:
            there = {name: p.grad for name, p in self._watched.items() if p.grad is not None}
            super().check_untouched({**there, **gradients})
            return
        for name, gradient in gradients.items():
            if name in self._accumulated:
                self._pairs.append((name, self._accumulated[name][1], fingerprint(gradient)))

    def moved(self) -> None:
        """Gradients may lie elsewhere than they did, with the numbers that they had."""
        for name, (_, before) in list(self._accumulated.items()):
            gradient = self._watched[name].grad
            if gradient is not None and are_alike([fingerprint(gradient)], [before])[0]:
                self.accept(name, gradient)

    def _end(self) -> None:
        """DDP is done: take note of what there is now."""
        self._ending = False
        for name in self._due.keys() | self._left.keys():
            gradient = self._watched[name].grad
            if name in self._left:
                due = self._due.get(name)
                if due is None:  # nothing arrived: what left is what was there before
                    before = self._accumulated.get(name)
                    due = torch.zeros_like(self._left[name]) if before is None else before[1]
                self._pairs.append((name, due, self._left[name]))
                self._apart.discard(name)
            elif gradient is not None:
                self._pairs.append((name, self._due[name], sum_fingerprint(self._watched[name], gradient)))
                self._apart.add(name)
            if gradient is not None:
                self.accept(name, gradient)
        self._due.clear()
        self._left.clear()

    def check_whole(self, names: Iterable[str]) -> None:
        """Raise unless what left, or stayed, was what the gates returned, and all of it was averaged."""
        if self._ending:
            self.broken = True
            raise PrivacyError(
                "a backward() did not come to its end, so that what is in .grad is neither one process's sum nor the "
                "mean of all. Call optimizer.zero_grad() and run the batch again."
            )
        self.refuse_changed(self._pairs)
        apart = sorted(self._apart.intersection(names))
        if apart and self._required:
            raise PrivacyError(
                f"the gradient of {apart[0]!r} was not averaged over the processes: the last backward() of the batch "
                "ran within no_sync(), or the model was called without its DistributedDataParallel. Each process would "
                "release its own part, with the noise of all. Call the wrapped model, and leave no_sync() for the last "
                "backward() before the step."
            )

    def reset(self) -> None:
        super().reset()
        self._due.clear()
        self._left.clear()
        self._pairs.clear()
        self._apart.clear()
        self._ending = False


def _at_end(callback: Callable[[], None]) -> None:
    """Call back at the end of the backward that is running, after what is queued already; as DDP itself does."""
    Variable._execution_engine.queue_callback(callback)
