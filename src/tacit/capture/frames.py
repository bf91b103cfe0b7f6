"""Where in the user's code a call comes from."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from types import FrameType

import torch
from torch.utils.checkpoint import CheckpointFunction

from tacit.capture.entrance import Entrance

_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
_ENTRANCE = Entrance.__call__.__code__


def in_autograd_function() -> bool:
    """Whether the running module calls from the forward of an ``autograd.Function``, whose gradient is its own."""
    return any(
        frame.f_code is _APPLY and frame.f_locals.get("cls") is not CheckpointFunction for frame in _within_entrance()
    )


def in_reentrant_checkpoint() -> bool:
    """Whether the forward of a checkpoint with ``use_reentrant=True`` is running."""
    if torch.is_grad_enabled():
        return False
    return any(frame.f_code is _APPLY and frame.f_locals.get("cls") is CheckpointFunction for frame in _frames())


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _within_entrance() -> Iterator[FrameType]:
    return itertools.takewhile(lambda frame: frame.f_code is not _ENTRANCE, _frames())
