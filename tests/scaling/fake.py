"""FSDP2 in one process that takes itself for the first of many: collectives do nothing, and are counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM


@contextmanager
def fake_group(processes: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sharded(config: dict[str, Any], processes: int, *, half: bool = False, device: str = "meta") -> nn.Module:
    """A model of Llama's kind, each block sharded, and what is outside them."""
    settings = dict(config)
    known = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(known, dtype=torch.float32).train()
    mesh = dist.device_mesh.init_device_mesh("cpu", (processes,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


class Handed(TorchDispatchMode):
    """Counts what is handed to collectives, in bytes, by their kind."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = {"allgather": 0, "reduce_scatter": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            (kind,) = (kind for kind in self.bytes if kind in func.name())
            self.bytes[kind] += args[1].nbytes
        return func(*args, **(kwargs or {}))
