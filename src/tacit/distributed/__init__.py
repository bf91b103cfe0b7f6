"""The only importer of torch.distributed."""

from tacit.distributed.averaging import Averaging
from tacit.distributed.group import Group
from tacit.distributed.world import is_set_up, is_sharded, rank, unwrapped, world_size

__all__ = ["Averaging", "Group", "is_set_up", "is_sharded", "rank", "unwrapped", "world_size"]
