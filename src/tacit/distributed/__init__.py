"""The only importer of torch.distributed."""

from tacit.distributed.world import is_data_parallel, world_size

__all__ = ["is_data_parallel", "world_size"]
