"""Memory of one process, item by item: the formulas of docs/scaling.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tacit.scaling.forms import Formed, distinct
from tacit.scaling.setting import MASTER, Mode, Setting
from tacit.scaling.survey import Survey
from tacit.uses import SHARE

PREFETCHED = 2
"""FSDP2 holds the parameters of so many blocks at once: one at work, one on its way."""

IN_FLIGHT = 3
"""Gradients of activations, each as large as the largest activation of a block, that are there at once: a guess."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of one process at the worst moment of a step.

    Attributes:
        state: what is there in each step, by name.
        moments: what is there beside it at each moment of a step, by name; the largest counts.
    """

    state: Mapping[str, int]
    moments: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.state.values()) + max(self.moments.values())

    @property
    def worst(self) -> str:
        """The moment that counts."""
        return max(self.moments, key=self.moments.__getitem__)


def estimate(survey: Survey, uses: Sequence[Formed], setting: Setting) -> Estimate:
    """Add up what a process holds.

    Args:
        survey: shapes.
        uses: in the forms in which the setting's mode holds them.
        setting: how the model is trained.
    """
    return Estimate(state(survey, setting), moments(survey, uses, setting))


def state(survey: Survey, setting: Setting) -> dict[str, int]:
    """Bytes of parameters, of all that is kept for them, and of what sharing them out needs."""
    shards = setting.processes if setting.sharded else 1
    whole = survey.trained * MASTER
    trained = _largest_shard(survey.parameters, shards) * MASTER
    found = {
        "parameters": trained + _largest_shard(survey.frozen, shards) * MASTER,
        "gradients": trained,
        "optimizer state": setting.optimizer.kept * trained,
    }
    if setting.averaged:
        found["DDP's buckets"] = whole
    if setting.sharded:
        found["parameters gathered for the moment"] = survey.itemsize * gathered_at_once(survey)
    elif survey.itemsize < MASTER:
        found["copies of weights that autocast makes"] = survey.itemsize * survey.numbers
    if setting.sharded and setting.mode is not Mode.plain:
        found["one clipped sum of full size"] = MASTER * max(shape.numel() for shape in survey.parameters.values())
    elif setting.sharded:
        root, blocks = root_and_blocks(survey)
        found["gradients of one group, before they are shared out"] = MASTER * max(root, *blocks)
    return found


def _largest_shard(shapes: Mapping[str, torch.Size], shards: int) -> int:
    """Numbers of the first process: FSDP2 shares out rows, and those that are left over go to the first ones."""
    return sum(math.ceil(shape[0] / shards) * shape[1:].numel() if shape else 1 for shape in shapes.values())


def gathered_at_once(survey: Survey) -> int:
    """Numbers that FSDP2 holds unsharded: what is outside the blocks, and the largest blocks."""
    root, blocks = root_and_blocks(survey)
    return root + sum(sorted(blocks)[-PREFETCHED:])


def root_and_blocks(survey: Survey) -> tuple[int, tuple[int, ...]]:
    """How many numbers are outside the blocks, and in each."""
    return survey.numbers - sum(survey.block_parameters), survey.block_parameters


def moments(survey: Survey, uses: Sequence[Formed], setting: Setting) -> dict[str, int]:
    """Bytes of activations and of what is held for the clip.

    A backward lets go of activations block by block as it takes on what is held for the clip. So the most is there in
    the loss, in the last block (where it begins), in the first (where it ends) or in the clip.
    """
    saved = survey.activations
    waiting = saved.waiting(checkpointing=setting.checkpointing)
    block = saved.one_block + IN_FLIGHT * saved.largest_in_block
    last = waiting - saved.outside + (block if setting.checkpointing else block - saved.one_block)
    found = {"the loss's gradient": waiting + saved.largest}
    if setting.mode is Mode.plain:
        return {**found, "a block's backward": last}
    clip = max(one.transient for one in uses)
    if not setting.mode.holds:
        recomputed = saved.one_block if setting.checkpointing else 0
        return {**found, "a block's backward": last, "a layer's clip": waiting + recomputed + clip}
    outside = distinct(part for one in uses if not survey.in_blocks(one.name) for part in one.parts)
    return {
        **found,
        "the last block's backward": last + outside,
        "the first block's backward": held(uses) + block,
        "the clip": held(uses) + clip,
    }


def held(uses: Sequence[Formed]) -> int:
    """Bytes that the gates hold when the last use has come, in mode auto."""
    return distinct(part for one in uses for part in one.parts)


def room_for_forms(survey: Survey, setting: Setting, memory: float | None) -> float:
    """Bytes that may be held for speed's sake: a part of what is free when the model is made private."""
    if memory is None:
        return math.inf
    return max(memory - state(survey, setting)["parameters"], 0) / SHARE
