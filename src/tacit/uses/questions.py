"""Questions about values. A CPU answers at once; a GPU is asked all of them together.

To ask a GPU is to wait until all is done that it was told to do, and meanwhile it is told nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_open: ContextVar[list[Tensor] | None] = ContextVar("_open", default=None)


def answers_at_once(device: torch.device) -> bool:
    """Whether to ask this device for a value waits for nothing."""
    return device.type == "cpu"


def any_of(mask: Tensor) -> bool:
    """Whether any is set. While questions are :func:`collected` the answer is no, and may turn out to be wrong."""
    questions = _open.get()
    if questions is None:
        return bool(mask.any())
    questions.append(mask.any())
    return False


@contextmanager
def collected() -> Iterator[list[Tensor]]:
    """Collect the questions of :func:`any_of`: boolean scalars. What is computed meanwhile holds if all are false."""
    questions: list[Tensor] = []
    token = _open.set(questions)
    try:
        yield questions
    finally:
        _open.reset(token)


def answers(questions: Sequence[Tensor]) -> list[bool]:
    """The values of boolean scalars on one device, which is waited for once."""
    found: list[bool] = torch.stack(list(questions)).tolist() if questions else []
    return found
