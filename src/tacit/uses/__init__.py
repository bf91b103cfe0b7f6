"""Uses of parameters: exact per-sample norms, clipped sums and dense gradients, in the cheapest form."""

from tacit.uses.base import Use
from tacit.uses.cost import DEFAULT_COSTS, CostModel
from tacit.uses.dense import Dense
from tacit.uses.gather import Gather
from tacit.uses.join import TableAndHead, join
from tacit.uses.layout import Layout
from tacit.uses.outer import Gram, Outer
from tacit.uses.patches import Geometry, Patches, gradients, row_gradients, unfold
from tacit.uses.routed import Routed
from tacit.uses.together import Together, small
from tacit.uses.tuning import TUNER, Tuner
from tacit.uses.units import Units
from tacit.uses.workspace import WORKSPACE

__all__ = [
    "DEFAULT_COSTS",
    "TUNER",
    "WORKSPACE",
    "CostModel",
    "Dense",
    "Gather",
    "Geometry",
    "Gram",
    "Layout",
    "Outer",
    "Patches",
    "Routed",
    "TableAndHead",
    "Together",
    "Tuner",
    "Units",
    "Use",
    "gradients",
    "join",
    "row_gradients",
    "small",
    "unfold",
]
