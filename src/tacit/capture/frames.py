"""Where in the user's code a call comes from."""

from __future__ import annotations

import inspect
from types import FrameType

import torch
from torch.utils.checkpoint import CheckpointFunction

from tacit.capture.entrance import Entrance

_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
_ENTRANCE = Entrance.__call__.__code__


def in_autograd_function() -> bool:
    """Whether the running module calls from the forward of an ``autograd.Function``, whose gradient is its own."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and frame.f_code is not _ENTRANCE:
        if frame.f_code is _APPLY and frame.f_locals.get("cls") is not CheckpointFunction:
            return True
        frame = frame.f_back
    return False
