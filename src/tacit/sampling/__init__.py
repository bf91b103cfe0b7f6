"""Which records join which batch, and what may be claimed about it."""

from tacit.sampling.base import Sampling
from tacit.sampling.collate import EmptyAwareCollate
from tacit.sampling.cyclic import CyclicPoissonSampling
from tacit.sampling.disjoint import BallsInBinsSampling
from tacit.sampling.draws import Batch, Draw, DrawLog, Piece
from tacit.sampling.fixed import FixedSizeSampling, FullBatchSampling
from tacit.sampling.generators import user_generator
from tacit.sampling.handouts import Handout
from tacit.sampling.loader import PrivateLoader, private_loader
from tacit.sampling.own_batches import EpochSampling
from tacit.sampling.parts import Part, is_parted, whole
from tacit.sampling.physical import BatchMemoryManager, MicrobatchTarget, PhysicalBatches
from tacit.sampling.poisson import PoissonSampling, inclusion_threshold
from tacit.sampling.source import check_source
from tacit.sampling.truncated import TruncatedPoissonSampling
from tacit.sampling.users import UserPoissonSampling
from tacit.sampling.weighted import WeightedPoissonSampling

__all__ = [
    "BallsInBinsSampling",
    "Batch",
    "BatchMemoryManager",
    "CyclicPoissonSampling",
    "Draw",
    "DrawLog",
    "EmptyAwareCollate",
    "EpochSampling",
    "FixedSizeSampling",
    "FullBatchSampling",
    "Handout",
    "MicrobatchTarget",
    "Part",
    "PhysicalBatches",
    "Piece",
    "PoissonSampling",
    "PrivateLoader",
    "Sampling",
    "TruncatedPoissonSampling",
    "UserPoissonSampling",
    "WeightedPoissonSampling",
    "check_source",
    "inclusion_threshold",
    "is_parted",
    "private_loader",
    "user_generator",
    "whole",
]
