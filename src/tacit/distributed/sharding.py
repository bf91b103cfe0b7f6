"""Parameters spread over processes by ``fully_shard`` (FSDP2): where their shards are, and sums spread likewise.

A sharded parameter is a DTensor: its shape is the whole parameter's, and each process holds a part of it. Along a
replicated dimension of the mesh (HSDP) several processes hold the same part.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tacit.distributed.group import exchanged
from tacit.distributed.world import is_set_up, world_size
from tacit.errors import ConfigurationError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, Placement

_HOW = (
    "Shard the model with torch.distributed.fsdp.fully_shard (FSDP2), or wrap it in DistributedDataParallel; or train "
    "in one process."
)


_WHOLE = (Tensor, nn.Parameter)


def is_spread(value: Tensor) -> bool:
    """Whether a tensor is a DTensor: spread over processes, or copied to them."""
    # Asked of every gradient, several times; and importing DTensor takes half a second.
    if type(value) in _WHOLE or "torch.distributed.tensor" not in sys.modules:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def local(value: Tensor) -> Tensor:
    """This process's part of a tensor that is spread over processes; any other as it is. Both share memory."""
    if type(value) in _WHOLE or not is_spread(value):
        return value
    with torch.no_grad():  # then it is the part itself, which counts how often it was written to, and no alias
        part: Tensor = value.to_local()  # type: ignore[attr-defined]
    return part


def like(value: Tensor, part: Tensor) -> Tensor:
    """What ``value`` is, with another part in this process."""
    if not is_spread(value):
        return part
    from torch.distributed.tensor import DTensor

    spread: DTensor = value  # type: ignore[assignment]
    return DTensor.from_local(
        part, spread.device_mesh, spread.placements, run_check=False, shape=spread.shape, stride=spread.stride()
    )


def sharded_modules(module: nn.Module) -> list[nn.Module]:
    """The modules to which ``fully_shard`` was applied."""
    if "torch.distributed.fsdp" not in sys.modules:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def reshard(module: nn.Module) -> None:
    """Let modules own their sharded parameters again: after a forward they may own the whole ones for a while."""
    for part in sharded_modules(module):
        fsdp: FSDPModule = part  # type: ignore[assignment]
        fsdp.reshard()


def is_same_everywhere(number: int, device: torch.device) -> bool:
    """Whether all processes of the default group have the same number, of 63 bits; each must call it."""
    first, *others = exchanged([number], device)
    return all(other == first for other in others)


@dataclass(frozen=True)
class Spread:
    """How one parameter is spread.

    Attributes:
        mesh: the processes.
        placements: for each dimension of the mesh, whether it shards the parameter or replicates it.
    """

    mesh: DeviceMesh
    placements: tuple[Placement, ...]

    @classmethod
    def of(cls, value: Tensor) -> Spread | None:
        """How a tensor is spread; None if it is not."""
        if not is_spread(value):
            return None
        spread: DTensor = value  # type: ignore[assignment]
        return cls(spread.device_mesh, tuple(spread.placements))

    @property
    def sharding(self) -> tuple[bool, ...]:
        """Which dimensions of the mesh shard."""
        return tuple(placement.is_shard() for placement in self.placements)

    def sum(self, total: Tensor) -> Tensor:
        """Add up a tensor of the whole parameter's shape over all processes; each keeps its shard of the sum.

        All processes must call it, in the same order.
        """
        from torch.distributed.tensor import DTensor, Partial

        dims = self.mesh.ndim
        value = DTensor.from_local(total, self.mesh, [Partial()] * dims, run_check=False)
        # From the last dimension, which shards: what is summed over replicas is then a shard, not the whole.
        for dim in reversed(range(dims)):
            value = value.redistribute(placements=[*[Partial()] * dim, *self.placements[dim:]])
        return value


@dataclass(frozen=True)
class Sharding:
    """How all private parameters are spread over the processes.

    Attributes:
        shard: the number of the shard that this process holds.
        shards: how many there are. Where there are more processes than that, some hold the same.
    """

    shard: int
    shards: int

    @classmethod
    def of(cls, parameters: Mapping[str, nn.Parameter]) -> Sharding | None:
        """What `check_sharding` has found to be in order; None if the parameters are not spread."""
        spread = next((found for p in parameters.values() if (found := Spread.of(p)) is not None), None)
        if spread is None:
            return None
        place = spread.mesh.get_coordinate()
        assert place is not None  # its size is that of the process group
        shard, shards = 0, 1
        for here, size, sharded in zip(place, spread.mesh.shape, spread.sharding, strict=True):
            if sharded:
                shard, shards = shard * size + here, shards * size
        return cls(shard, shards)


def check_sharding(module: nn.Module, private: Mapping[str, nn.Parameter]) -> None:
    """Raise unless parameters are in each process as a whole, or spread by ``fully_shard`` over all processes.

    Raises:
        ConfigurationError: only some private parameters are spread, or not alike.
        NotImplementedError: they are spread in a way that is not known here.
    """
    if not is_set_up():
        return
    _check_wrappers(module)
    spread = {name: Spread.of(p) for name, p in module.named_parameters()}
    if all(found is None for found in spread.values()):
        return
    owned = {id(p) for part in sharded_modules(module) for p in part.parameters()}
    strangers = [name for name, p in module.named_parameters() if spread[name] is not None and id(p) not in owned]
    if strangers:
        raise NotImplementedError(
            f"{strangers[0]!r} is a DTensor, but of no module that fully_shard was applied to (tensor parallelism?): "
            f"processes would compute parts of one sample, whose gradient nobody has. {_HOW}"
        )
    for name, found in spread.items():
        if found is not None:
            _check_one(name, found)
    kinds = {(found.mesh, found.sharding) for name in private if (found := spread.get(name)) is not None}
    if len(kinds) > 1:
        raise NotImplementedError(
            "the optimizer's parameters are sharded over different meshes, so that processes hold different numbers of "
            "shards. Call fully_shard with one mesh for all modules."
        )
    for name, parameter in private.items():
        if parameter.requires_grad:
            check_trained(name, parameter)


def _check_wrappers(module: nn.Module) -> None:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and any(isinstance(part, fsdp.FullyShardedDataParallel) for part in module.modules()):
        raise NotImplementedError(
            "FullyShardedDataParallel (FSDP1) joins parameters into flat ones, whose gradients by sample cannot be "
            f"told apart. {_HOW}"
        )


def _check_one(name: str, spread: Spread) -> None:
    if spread.mesh.size() != world_size():
        raise NotImplementedError(
            f"{name!r} is spread over {spread.mesh.size()} processes, and {world_size()} train: batches and noise are "
            "shared by all of them. Call fully_shard with a mesh of all processes."
        )
    kinds = [("shard" if placement.is_shard() else "copy") for placement in spread.placements]
    plain = all(placement.is_replicate() or type(placement).__name__ == "Shard" for placement in spread.placements)
    if not plain or kinds not in (["shard"], ["copy"], ["copy", "shard"]):
        raise NotImplementedError(
            f"{name!r} is spread as {spread.placements} over {spread.mesh}: neither sharded over all processes (FSDP) "
            f"nor over some and copied to others (HSDP). Tensor parallelism is not supported. {_HOW}"
        )


def check_trained(name: str, parameter: nn.Parameter) -> None:
    """Raise unless a parameter of a sharded model may be trained.

    Raises:
        ConfigurationError: it is not spread over the processes, or its type is too small for sums.
        NotImplementedError: it lies elsewhere than its gradient is computed.
    """
    spread = Spread.of(parameter)
    if spread is None:
        raise ConfigurationError(
            f"{name!r} is not sharded, and others are: each process would train it by itself. Call "
            "fully_shard(model) on the whole model, without ignored_params, before make_private(); or freeze it."
        )
    if parameter.device.type != spread.mesh.device_type:
        raise NotImplementedError(
            f"{name!r} is on {parameter.device.type}, and its gradient is computed on {spread.mesh.device_type}: "
            "CPUOffloadPolicy is not supported there. Leave offload_policy out."
        )
    if parameter.dtype.itemsize < 4 and spread.mesh.size() > 1:
        raise ConfigurationError(
            f"{name!r} is {parameter.dtype}: its clipped sums would be added up over the processes in that type, "
            "and rounding would move them by more than one sample may. Keep parameters in float32 and use "
            "fully_shard(mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)), or torch.autocast."
        )
