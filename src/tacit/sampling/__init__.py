"""Which records join which batch, and what may be claimed about it."""

from tacit.sampling.base import Sampling
from tacit.sampling.collate import EmptyAwareCollate
from tacit.sampling.draws import Draw, DrawLog
from tacit.sampling.loader import PrivateLoader, private_loader
from tacit.sampling.own_batches import EpochSampling
from tacit.sampling.physical import BatchMemoryManager, MicrobatchTarget, PhysicalBatches
from tacit.sampling.poisson import PoissonSampling, inclusion_threshold
from tacit.sampling.source import check_source

__all__ = [
    "BatchMemoryManager",
    "Draw",
    "DrawLog",
    "EmptyAwareCollate",
    "EpochSampling",
    "MicrobatchTarget",
    "PhysicalBatches",
    "PoissonSampling",
    "PrivateLoader",
    "Sampling",
    "check_source",
    "inclusion_threshold",
    "private_loader",
]
