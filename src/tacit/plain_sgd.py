"""Which parameters a user's optimizer steps by ``−lr · grad`` and nothing else: the pass that makes noise can do that.

Whoever looks at the optimizer's step while it runs (hooks, a profiler) finds it as it ever was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

_OFF = ("momentum", "dampening", "weight_decay", "nesterov", "maximize", "differentiable", "fused")

_LARGEST = 1e30
"""Torch refuses rates that float32 does not hold."""

_STEP = inspect.unwrap(SGD.step)
_AS_HOOKED = Optimizer.profile_hook_step(_STEP).__code__  # torch wraps it once, with the first SGD of the process


def plain_rates(optimizer: Optimizer, own: Collection[Callable[..., Any]]) -> dict[Tensor, float]:
    """The learning rates of parameters that are stepped plainly: dense ones on the CPU that share no memory.

    Args:
        optimizer: the user's.
        own: hooks that do not look at gradients.
    """
    if not _steps_plainly(optimizer, own):
        return {}
    rates = {p: group["lr"] for group in optimizer.param_groups if _is_plain(group) for p in group["params"]}
    if not rates or not _apart(p for group in optimizer.param_groups for p in group["params"]):
        return {}
    return {p: rate for p, rate in rates.items() if _is_simple(p)}


def _steps_plainly(optimizer: Optimizer, own: Collection[Callable[..., Any]]) -> bool:
    """Whether ``step()`` is that of torch's SGD, which nobody listens to."""
    if type(optimizer) is not SGD or SGD.step.__code__ is not _AS_HOOKED or inspect.unwrap(SGD.step) is not _STEP:
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


def _is_schedulers(step: Any) -> bool:
    """Whether it is what a learning rate scheduler lays around an optimizer's step, to see whether it is called."""
    return "_wrapped_by_lr_sched" in vars(step) and step.__wrapped__ is SGD.step


def _is_plain(group: dict[str, Any]) -> bool:
    if any(isinstance(group[name], Tensor) or group[name] for name in _OFF):
        return False
    return isinstance(group["lr"], int | float) and 0 <= group["lr"] <= _LARGEST


def _is_simple(parameter: Tensor) -> bool:
    wide = parameter.dtype in (torch.float32, torch.float64)
    return wide and parameter.device.type == "cpu" and parameter.is_contiguous() and not parameter.is_inference()


def _apart(parameters: Iterable[Tensor]) -> bool:
    """Whether these are parameters of torch's own kind, each once, and no two share memory."""
    spans = []
    for p in parameters:
        if type(p) is not nn.Parameter or p.layout is not torch.strided:
            return False
        reach = sum((size - 1) * step for size, step in zip(p.shape, p.stride(), strict=True)) + 1
        spans.append((p.data_ptr(), p.data_ptr() + (reach if p.numel() else 0) * p.element_size()))
    spans.sort()
    return all(end <= start for (_, end), (start, _) in pairwise(spans))
