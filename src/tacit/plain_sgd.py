"""Which parameters a user's optimizer moves by ``−lr · grad`` and by nothing else: the pass that makes noise can do it.

Where somebody looks on while the optimizer steps (hooks, a profiler), it steps all by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from itertools import chain, pairwise
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    _use_grad_for_differentiable,
)

from tacit.mechanisms.gaussian import SMALL

_OFF = ("momentum", "dampening", "weight_decay", "nesterov", "maximize", "differentiable", "fused")

_LARGEST = 1e30
"""Torch refuses rates that float32 does not hold."""

_STEP = inspect.unwrap(SGD.step)
_LAYERS = tuple(
    around(_STEP).__code__ for around in (Optimizer.profile_hook_step, _use_grad_for_differentiable)
)  # what torch lays around it: the first with the first SGD of the process


def plain_rates(optimizer: Optimizer, own: Collection[Callable[..., Any]]) -> dict[int, float]:
    """The learning rates of large parameters that are stepped plainly, by ``id``.

    They are dense, on the CPU, and share no memory with others of the optimizer. Small ones, whose noise is made side
    by side, are stepped in no time.

    Args:
        optimizer: the user's.
        own: hooks that do not look at gradients.
    """
    if not _steps_plainly(optimizer, own):
        return {}
    groups = optimizer.param_groups
    rates = {id(p): g["lr"] for g in groups if _is_plain(g) for p in g["params"] if p.numel() > SMALL and _is_simple(p)}
    return rates if rates and _apart(p for group in groups for p in group["params"]) else {}


def _steps_plainly(optimizer: Optimizer, own: Collection[Callable[..., Any]]) -> bool:
    """Whether ``step()`` is that of torch's SGD, which nobody listens to."""
    if type(optimizer) is not SGD or not _is_torchs_step():
        return False
    step = vars(optimizer).get("step")
    if step is not None and not _is_schedulers(step):
        return False
    hooks = chain(
        optimizer._optimizer_step_pre_hooks.values(),
        optimizer._optimizer_step_post_hooks.values(),
        _global_optimizer_pre_hooks.values(),
        _global_optimizer_post_hooks.values(),
    )
    return not torch._C._autograd._profiler_enabled() and all(hook in own for hook in hooks)


def _is_torchs_step() -> bool:
    """Whether nobody has laid a function of his own around ``SGD.step``."""
    step: Any = SGD.step
    for layer in _LAYERS:
        if getattr(step, "__code__", None) is not layer:
            return False
        step = step.__wrapped__
    return step is _STEP


def _is_schedulers(step: Any) -> bool:
    """Whether it is what a learning rate scheduler lays around an optimizer's step, to see whether it is called."""
    if not isinstance(step, FunctionType):
        return False
    return "_wrapped_by_lr_sched" in vars(step) and vars(step).get("__wrapped__") is SGD.step


def _is_plain(group: dict[str, Any]) -> bool:
    if any(isinstance(group[name], Tensor) or group[name] for name in _OFF):
        return False
    return isinstance(group["lr"], int | float) and 0 <= group["lr"] <= _LARGEST


def _is_simple(parameter: Tensor) -> bool:
    if parameter.layout is not torch.strided or parameter.device.type != "cpu" or parameter.is_inference():
        return False
    return parameter.dtype in (torch.float32, torch.float64) and parameter.is_contiguous()


def _apart(parameters: Iterable[Tensor]) -> bool:
    """Whether these are parameters of torch's own kind, each once, and no two share memory."""
    spans = []
    for p in parameters:
        if type(p) is not nn.Parameter or p.layout is not torch.strided:
            return False
        start, count = p.data_ptr(), p.numel()
        if count and not p.is_contiguous():
            count = 1 + sum((size - 1) * step for size, step in zip(p.shape, p.stride(), strict=True))
        spans.append((start, start + count * p.element_size()))
    spans.sort()
    return all(end <= start for (_, end), (start, _) in pairwise(spans))
