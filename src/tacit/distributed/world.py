"""How many processes train together, and how a model says so."""

from __future__ import annotations

import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def is_set_up() -> bool:
    """Whether this process has joined others (be it alone): ``init_process_group`` was called."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def world_size() -> int:
    """Return the number of processes, 1 if torch.distributed is not set up."""
    return torch.distributed.get_world_size() if is_set_up() else 1


def rank() -> int:
    """Return the number of this process, 0 if torch.distributed is not set up."""
    return torch.distributed.get_rank() if is_set_up() else 0


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, or the module as it is."""
    return module.module if isinstance(module, DistributedDataParallel) else module
