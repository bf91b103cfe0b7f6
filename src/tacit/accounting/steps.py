"""The losses of any pair's single step, or epoch."""

from __future__ import annotations

from tacit.accounting.balls import epoch_losses
from tacit.accounting.cells import Direction
from tacit.accounting.losses import Losses, Mesh
from tacit.accounting.pairs import EpochPair, FixedSizePair, Pair, ReplacedPair, TruncatedPair
from tacit.accounting.replaced import fixed_size_losses, replaced_losses, truncated_losses
from tacit.accounting.single_step import poisson_cells


def step_losses(pair: Pair, direction: Direction, *, upper: bool, lost: float, mesh: Mesh) -> Losses:
    """The losses of a pair, as one that dominates it or that it dominates.

    Args:
        pair: of one step, or one epoch.
        direction: "remove": P is with the record and Q without; "add": the other way round. Pairs for replacing a
            record have one direction only.
        upper: which bound.
        lost: mass that may be moved to infinity, or to the outermost nodes.
        mesh: how fine.
    """
    if isinstance(pair, ReplacedPair):
        return replaced_losses(pair, upper=upper, lost=lost, cell=mesh.cell)
    if isinstance(pair, FixedSizePair):
        return fixed_size_losses(pair, upper=upper, lost=lost, cell=mesh.cell)
    if isinstance(pair, TruncatedPair):
        return truncated_losses(pair, direction, upper=upper, lost=lost, cell=mesh.cell)
    if isinstance(pair, EpochPair):
        return epoch_losses(pair, direction, upper=upper, lost=lost, mesh=mesh)
    return poisson_cells(pair, upper=upper, lost=lost, cell=mesh.cell).losses(direction)
