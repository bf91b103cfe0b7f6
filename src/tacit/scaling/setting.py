"""How a model is to be trained, as far as memory and communication depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GIB = 2**30

MASTER = 4
"""Bytes of a parameter, a gradient or a number of the optimizer's state: float32."""


class Mode(StrEnum):
    """What happens between the loss and the clipped sums."""

    plain = "plain"
    """No privacy."""
    auto = "auto"
    ghost = "ghost"
    per_layer = "per_layer"

    @property
    def holds(self) -> bool:
        """Whether uses are held until the last of a backward has come."""
        return self is Mode.auto


class Sharding(StrEnum):
    """What several processes share out."""

    ddp = "ddp"
    """The batch."""
    fsdp = "fsdp"
    """The batch, parameters, gradients and the optimizer's state."""


class Optimizer(StrEnum):
    """By what it keeps for each number that is trained."""

    adamw = "adamw"
    sgd = "sgd"

    @property
    def kept(self) -> int:
        """Numbers that are kept for each trained one. (SGD without momentum.)"""
        return 2 if self is Optimizer.adamw else 0


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to train.

    Attributes:
        processes: n.
        sharding: of several processes.
        mode: of clipping.
        optimizer: which.
        checkpointing: each block is recomputed in the backward.
    """

    processes: int = 1
    sharding: Sharding = Sharding.ddp
    mode: Mode = Mode.auto
    optimizer: Optimizer = Optimizer.adamw
    checkpointing: bool = False

    @property
    def averaged(self) -> bool:
        """Whether DDP averages gradients."""
        return self.processes > 1 and self.sharding is Sharding.ddp

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 shards parameters."""
        return self.processes > 1 and self.sharding is Sharding.fsdp

    @property
    def text(self) -> str:
        """In words."""
        mode = {Mode.ghost: 'grad_sample_mode="ghost"', Mode.per_layer: 'clipping="per_layer"'}.get(
            self.mode, self.mode
        )
        where = f"{self.processes} processes, {self.sharding.upper()}" if self.processes > 1 else "one process"
        return f"{mode}, {where}, {'with' if self.checkpointing else 'without'} checkpointing"
