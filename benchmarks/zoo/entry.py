"""What the zoo knows of a model, and the ways in which it is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tacit.capture.marks import map_tensors

Way = Literal["full", "LoRA", "checkpointing", "checkpointing, reentrant", "bf16"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        build: makes it, with its random weights.
        batch: makes a batch of B samples, with T positions where there are positions.
        loss: the loss of a model on a batch, a mean over samples.
        lora: puts an adapter on it; None if it is one.
        checkpointed: switches activation checkpointing on, reentrant or not; None if that is not possible.
        precision: how far its own arithmetic lets errors be: some models compute in float32 inside.
    """

    build: Callable[[], Any]
    batch: Callable[[int, int], Any]
    loss: Callable[[Any, Any], Tensor]
    lora: Callable[[Any], Any] | None
    checkpointed: Callable[[Any, bool], Any] | None
    precision: float = 1e-9

    def model(self) -> nn.Module:
        """The model, in float64 and train mode: the same each time."""
        torch.manual_seed(0)
        model: nn.Module = self.build()
        return model.double().train()

    def batch_of(self, B: int = 3, T: int = 5) -> Any:
        """A batch in float64: the same each time."""
        torch.manual_seed(1)
        return cast(self.batch(B, T), torch.float64)


def ways_of(entry: Entry) -> dict[Way, Callable[[], nn.Module]]:
    """How to make the model for each way of training it. (For "bf16", run its loss in ``in_bfloat16``.)"""
    ways: dict[Way, Callable[[], nn.Module]] = {"full": entry.model, "bf16": lambda: entry.model().float()}
    if entry.lora is not None:
        lora = entry.lora
        ways["LoRA"] = lambda: lively(lora(entry.model()).double().train())
    if entry.checkpointed is not None:
        switch = entry.checkpointed
        ways["checkpointing"] = lambda: switch(entry.model(), False)
        ways["checkpointing, reentrant"] = lambda: switch(entry.model(), True)
    return ways


def lively(model: nn.Module) -> nn.Module:
    """Give every trainable parameter random values: adapters begin with zeros, and then half of the gradients are."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def in_bfloat16(loss: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    def run(model: Any, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(model, batch)

    return run


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """A batch with its numbers in another precision."""
    return map_tensors(lambda value: value.to(dtype) if value.is_floating_point() else value, batch)


class Checkpointed(nn.Module):
    """A module under activation checkpointing."""

    def __init__(self, inner: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, *inputs: Any) -> Any:
        return checkpoint(self.inner, *inputs, use_reentrant=self.reentrant)


def wrapping(*names: str) -> Callable[[nn.Module, bool], nn.Module]:
    """Checkpoint the named submodules. For reentrant checkpoints, their inputs must want a gradient."""

    def switch(model: nn.Module, reentrant: bool) -> nn.Module:
        model = copy.deepcopy(model)
        for name in names:
            model.set_submodule(name, Checkpointed(model.get_submodule(name), reentrant=reentrant))
        return model

    return switch
