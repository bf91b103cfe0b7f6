"""States of models and optimizers that are spread over processes: as a whole for a file, and spread again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tacit.distributed.sharding import Spread, is_spread


def as_whole(state: Any, *, keep: bool) -> Any:
    """A state with whole tensors, on the CPU, in the place of those that are spread.

    All processes must call it with states of one form: each tensor is gathered, one after the other.

    Args:
        state: nested mappings and lists.
        keep: whether this process wants it; the others only take part.
    """

    def gathered(value: Tensor, _: str) -> Tensor | None:
        if not is_spread(value):
            return value
        whole: Tensor = value.full_tensor()  # type: ignore[attr-defined]
        return whole.cpu() if keep else None

    return each_tensor(state, gathered)


def each_tensor(state: Any, change: Callable[[Tensor, str], Any], name: str = "") -> Any:
    """A state of nested mappings and lists, with ``change(tensor, name)`` in the place of each tensor.

    Args:
        state: the state.
        change: is also told where a tensor is: the keys that lead to it, with dots.
        name: what the names begin with.
    """
    if isinstance(state, Tensor):
        return change(state, name)
    if isinstance(state, Mapping):
        return {key: each_tensor(value, change, f"{name}.{key}") for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(each_tensor(value, change, f"{name}.{place}") for place, value in enumerate(state))
    return state


def spread_like(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor that each process has, spread as ``like`` is.

    If that is not spread, or ``whole`` is already, it is returned as it is.
    """
    spread = Spread.of(like)
    if spread is None or is_spread(whole):
        return whole
    from torch.distributed.tensor import distribute_tensor

    placed = whole.to(like.device)
    return distribute_tensor(placed, spread.mesh, spread.placements, src_data_rank=None)  # nothing is sent


def room_like(empty: Tensor, like: Tensor) -> Tensor:
    """A tensor to be filled, of one's shape and type and spread as ``like`` is; ``empty`` itself if that is not."""
    return torch.empty_like(like, dtype=empty.dtype) if is_spread(like) and empty.shape == like.shape else empty


def spread_model(
    whole: Mapping[str, Any], own: Mapping[str, Any], spread: Callable[[Tensor, Tensor], Tensor] = spread_like
) -> dict[str, Any]:
    """The state of a model, of whose tensors each is spread as the model's own is.

    Args:
        whole: a ``state_dict`` of one like it.
        own: the model's own.
        spread: makes one tensor like another.
    """
    return {
        name: spread(value, mine) if isinstance(value, Tensor) and isinstance(mine := own[name], Tensor) else value
        for name, value in whole.items()
    }


def spread_optimizer(
    whole: Mapping[str, Any], optimizer: Optimizer, spread: Callable[[Tensor, Tensor], Tensor] = spread_like
) -> dict[str, Any]:
    """The state of an optimizer, of whose tensors those of a parameter's shape are spread as the parameter is.

    Args:
        whole: a ``state_dict`` of one like it.
        optimizer: the optimizer.
        spread: makes one tensor like another.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in whole["param_groups"] for number in group["params"]]
    by_number = dict(zip(numbers, parameters, strict=False))
    state: dict[Any, Any] = {}
    for number, values in whole["state"].items():
        parameter = by_number.get(number)
        state[number] = {
            name: spread(value, parameter)
            if isinstance(value, Tensor) and parameter is not None and value.shape == parameter.shape
            else value
            for name, value in values.items()
        }
    return {**whole, "state": state}
