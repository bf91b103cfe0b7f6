"""How many processes train together."""

from __future__ import annotations

import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def world_size() -> int:
    """Return the number of processes, 1 if torch.distributed is not set up."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def is_data_parallel(module: nn.Module) -> bool:
    return isinstance(module, DistributedDataParallel)
