"""DistributedDataParallel's part: the mean over all processes of what the gates left in each.

DDP copies gradients into buckets as soon as they are accumulated, and averages each bucket while the backward goes on.
Its communication hook is taken: so nobody else can put one there that compresses what goes over the wire, which would
change what the noise was calibrated for, and each gradient that leaves is seen.
"""

# No `from __future__ import annotations`: DDP looks at the hook's annotations.

from collections.abc import Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tacit.distributed.group import Group, explained
from tacit.errors import ConfigurationError


class Watcher(Protocol):
    """Is shown what leaves this process."""

    def leaving(self, name: str, gradient: Tensor) -> None: ...

    def moved(self) -> None: ...


class _Mean:
    """DDP's own averaging as a communication hook; it stays for good, watched or not.

    Attributes:
        watcher: whom to show what leaves.
        names: the private parameters by identity.
        used: it has averaged something since the last forward.
        rounds: how many forwards came after an averaging.
        sums: what was averaged since the last release, where it lies in the buckets, with the parameters.
    """

    def __init__(self) -> None:
        self.watcher: Watcher | None = None
        self.names: dict[int, str] = {}
        self.used = False
        self.rounds = 0
        self.sums: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def reduce(self, _state: object, bucket: torch._C._distributed_c10d.GradBucket) -> torch.futures.Future[Tensor]:
        self.used = True
        buffer = bucket.buffer()
        if self.watcher is not None:
            self.sums[bucket.index()] = list(zip(bucket.parameters(), bucket.gradients(), strict=True))
            for parameter, gradient in self.sums[bucket.index()]:
                self.watcher.leaving(self.names[id(parameter)], gradient)
        work = dist.all_reduce(buffer.div_(dist.get_world_size()), async_op=True)
        assert work is not None  # it is None only outside the group
        future: torch.futures.Future[Tensor] = work.get_future().then(_first)
        return future


def _first(future: Any) -> Tensor:
    with explained():
        value: Tensor = future.value()[0]
    return value


_HOOKS: "WeakKeyDictionary[DistributedDataParallel, _Mean]" = WeakKeyDictionary()
"""A communication hook can be registered once and never taken off."""


_MOVES = 2
"""In the forward after the first averaging, of a static graph after the second, DDP makes new buckets, and moves what
is in the old ones."""


class Averaging:
    """Finds the DistributedDataParallel object around the private model, and watches what it sends.

    Args:
        group: the processes, as they were when the model was made private.
        parameters: the private parameters by name.
        watcher: is shown every gradient before it leaves; None without a process group.
        ghost: two passes are run within each backward, from losses outside its graph.
    """

    def __init__(
        self, group: Group, parameters: Mapping[str, nn.Parameter], watcher: Watcher | None, *, ghost: bool
    ) -> None:
        self._group = group
        self._parameters = dict(parameters)
        self._watcher = watcher
        self._ghost = ghost
        self._wrapper: DistributedDataParallel | None = None

    def look(self) -> None:
        """Note within which DDP object a forward runs, if any. Called in every private forward."""
        wrapper = DistributedDataParallel._get_active_ddp_module()
        if wrapper is None:
            return
        if wrapper is not self._wrapper:
            self.adopt(wrapper)
        mean = _HOOKS[wrapper]
        if mean.used:
            mean.used, mean.rounds = False, mean.rounds + 1
            if wrapper.gradient_as_bucket_view and mean.rounds <= _MOVES and self._watcher is not None:
                self._watcher.moved()
        if wrapper.static_graph and not wrapper.require_backward_grad_sync and not mean.rounds:
            raise ConfigurationError(
                "DistributedDataParallel(static_graph=True) learns the graph in its first backward, and does so only "
                "if that is averaged: leave no_sync() out in the first step."
            )

    def adopt(self, wrapper: nn.Module) -> None:
        """Take a DDP object's communication hook; anything else is left alone.

        Raises:
            ConfigurationError: what it does to gradients would not be one mean over all processes.
        """
        if not isinstance(wrapper, DistributedDataParallel):
            return
        self._check(wrapper)
        mean = _HOOKS.get(wrapper)
        if mean is None:
            mean = _Mean()
            try:
                wrapper.register_comm_hook(None, mean.reduce)
            except RuntimeError as error:
                raise ConfigurationError(
                    "this DistributedDataParallel has a communication hook: it would change the clipped sums "
                    "(compress them, delay them) before there is noise. Wrap the model without one."
                ) from error
            _HOOKS[wrapper] = mean
        mean.watcher = self._watcher
        mean.names = {id(p): name for name, p in self._parameters.items()}
        self._wrapper = wrapper

    def hold(self, hold: bool) -> None:
        """Say whether the coming backward only accumulates: then nothing is sent, as in ``no_sync()``.

        Of a static graph every backward is averaged: DDP cannot do without in the first.
        """
        if self._wrapper is not None and not self._wrapper.static_graph:
            self._wrapper.require_backward_grad_sync = not hold

    def clear(self) -> None:
        """After a release: DDP's buckets would keep the sums without noise until the next backward."""
        if self._wrapper is None:
            return
        mean = _HOOKS[self._wrapper]
        for parameter, total in (pair for bucket in mean.sums.values() for pair in bucket):
            gradient = parameter.grad
            if gradient is None or gradient.data_ptr() != total.data_ptr():  # else there is noise on it
                total.data.zero_()  # all gradients that lie in a bucket share its version, by which changes are told
        mean.sums.clear()

    def detach(self) -> None:
        """Leave plain averaging behind."""
        if self._wrapper is not None:
            self.hold(False)
            _HOOKS[self._wrapper].watcher = None
            _HOOKS[self._wrapper].sums.clear()
            self._wrapper = None

    def _check(self, wrapper: DistributedDataParallel) -> None:
        if not self._group.is_set_up:
            raise ConfigurationError(
                "the model was made private before init_process_group() was called, and would draw batches and noise "
                "of its own in each process. Call init_process_group() first."
            )
        if self._wrapper is not None:
            raise ConfigurationError(
                "the private model is inside two DistributedDataParallel objects, and its gradients would be averaged "
                "twice, or by neither. Wrap it once."
            )
        if wrapper.process_group.size() != self._group.count:
            raise ConfigurationError(
                f"DistributedDataParallel averages over {wrapper.process_group.size()} processes, and "
                f"{self._group.count} train: batches and noise are shared by all of them. Leave process_group= out."
            )
        if wrapper.mixed_precision is not None:
            raise ConfigurationError(
                "DistributedDataParallel(mixed_precision=...) runs the model on copies of its parameters, whose "
                "gradients cannot be watched. Use torch.autocast."
            )
        if self._ghost and wrapper.static_graph:
            raise ConfigurationError(
                'static_graph=True does not go together with grad_sample_mode="ghost": in the first backward '
                "DistributedDataParallel would average before the second pass has clipped. Leave static_graph out, or "
                'use grad_sample_mode="auto".'
            )
        self._check_parameters(wrapper)

    def _check_parameters(self, wrapper: DistributedDataParallel) -> None:
        wrapped = {id(p): name for name, p in wrapper.module.named_parameters() if p.requires_grad}
        private = {id(p) for p in self._parameters.values()}
        others = [name for key, name in wrapped.items() if key not in private]
        if others:
            raise ConfigurationError(
                f"DistributedDataParallel waits for the gradients of {', '.join(others[:5])}"
                f"{f' and {len(others) - 5} more' if len(others) > 5 else ''}, which are not trained here: the "
                "optimizer does not step them, and they get none. Call requires_grad_(False) on them before wrapping."
            )
        missing = [name for name, p in self._parameters.items() if p.requires_grad and id(p) not in wrapped]
        if missing:
            raise ConfigurationError(
                f"DistributedDataParallel wraps a part of the private model only: {missing[0]!r} is outside it, or "
                "was frozen when it was wrapped, and would be trained in each process by itself. Wrap the whole model."
            )
        small = [n for n, p in self._parameters.items() if p.requires_grad and p.dtype.itemsize < 4]
        if small and self._group.count > 1:
            raise ConfigurationError(
                f"{small[0]!r} is {self._parameters[small[0]].dtype}: its clipped sums would be added up over the "
                "processes in that type, and rounding would move them by more than one sample may. Keep parameters in "
                "float32 and use torch.autocast."
            )
