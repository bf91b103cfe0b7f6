"""Uses of parameters: exact per-sample norms, clipped sums and dense gradients, in the cheapest form."""

from tacit.uses.base import Use
from tacit.uses.cost import DEFAULT_COSTS, Asked, CostModel, Product
from tacit.uses.dense import Dense
from tacit.uses.fast_matmul import FastMatmul
from tacit.uses.fingerprint import Fingerprint, any_differ
from tacit.uses.gather import Gather
from tacit.uses.join import TableAndHead, join
from tacit.uses.layout import Layout
from tacit.uses.norms import Known, Norms
from tacit.uses.numerics import NARROW, wide, wide_dtype
from tacit.uses.outer import Gram, Outer
from tacit.uses.patches import Geometry, Patches, gradients, gradients_by_patches, row_gradients, unfold
from tacit.uses.precision import FullPrecision
from tacit.uses.questions import answers_at_once
from tacit.uses.rates import costs_of, device_name
from tacit.uses.room import SHARE, Room, free_memory
from tacit.uses.routed import Routed
from tacit.uses.together import FORMED, SMALL, Together, segment_sums, small
from tacit.uses.trials import product_key, time_product
from tacit.uses.tuning import TUNER, Tuner, clip_with
from tacit.uses.units import Units
from tacit.uses.workspace import Workspace

__all__ = [
    "DEFAULT_COSTS",
    "FORMED",
    "NARROW",
    "SHARE",
    "SMALL",
    "TUNER",
    "Asked",
    "CostModel",
    "Dense",
    "FastMatmul",
    "Fingerprint",
    "FullPrecision",
    "Gather",
    "Geometry",
    "Gram",
    "Known",
    "Layout",
    "Norms",
    "Outer",
    "Patches",
    "Product",
    "Room",
    "Routed",
    "TableAndHead",
    "Together",
    "Tuner",
    "Units",
    "Use",
    "Workspace",
    "answers_at_once",
    "any_differ",
    "clip_with",
    "costs_of",
    "device_name",
    "free_memory",
    "gradients",
    "gradients_by_patches",
    "join",
    "product_key",
    "row_gradients",
    "segment_sums",
    "small",
    "time_product",
    "unfold",
    "wide",
    "wide_dtype",
]
