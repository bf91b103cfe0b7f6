"""The only importer of torch.distributed."""

from tacit.distributed.averaging import Averaging
from tacit.distributed.group import Group
from tacit.distributed.sharding import (
    Sharding,
    Spread,
    check_sharding,
    check_trained,
    is_same_everywhere,
    is_spread,
    like,
    local,
    reshard,
    sharded_modules,
)
from tacit.distributed.shards import digest_of, read_shards, write_shards
from tacit.distributed.states import as_whole, each_tensor, room_like, spread_model, spread_optimizer
from tacit.distributed.world import is_set_up, rank, unwrapped, world_size

__all__ = [
    "Averaging",
    "Group",
    "Sharding",
    "Spread",
    "as_whole",
    "check_sharding",
    "check_trained",
    "digest_of",
    "each_tensor",
    "is_same_everywhere",
    "is_set_up",
    "is_spread",
    "like",
    "local",
    "rank",
    "read_shards",
    "reshard",
    "room_like",
    "sharded_modules",
    "spread_model",
    "spread_optimizer",
    "unwrapped",
    "world_size",
    "write_shards",
]
