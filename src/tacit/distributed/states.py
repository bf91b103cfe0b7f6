"""States of models and optimizers that are spread over processes: as a whole for a file, and spread again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    if isinstance(state, Tensor):
        if not is_spread(state):
            return state
        whole: Tensor = state.full_tensor()  # type: ignore[attr-defined]
        return whole.cpu() if keep else None
    if isinstance(state, Mapping):
        return {key: as_whole(value, keep=keep) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(as_whole(value, keep=keep) for value in state)
    return state


def spread_like(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor that each process has, spread as ``like`` is; as it is if that is not."""
    spread = Spread.of(like)
    if spread is None:
        return whole
    from torch.distributed.tensor import distribute_tensor

    placed = whole.to(like.device)
    return distribute_tensor(placed, spread.mesh, spread.placements, src_data_rank=None)  # nothing is sent


def spread_optimizer(whole: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The state of an optimizer, of whose tensors those of a parameter's shape are spread as the parameter is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in whole["param_groups"] for number in group["params"]]
    by_number = dict(zip(numbers, parameters, strict=False))
    state: dict[Any, Any] = {}
    for number, values in whole["state"].items():
        parameter = by_number.get(number)
        state[number] = {
            name: spread_like(value, parameter)
            if isinstance(value, Tensor) and parameter is not None and value.shape == parameter.shape
            else value
            for name, value in values.items()
        }
    return {**whole, "state": state}
