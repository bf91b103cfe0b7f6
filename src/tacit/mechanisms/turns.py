"""One thread at a time."""

from __future__ import annotations

import os
import threading


class Turns:
    """Hands out a lock of this process: one that another thread held when the process was forked is never let go of."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def one(self) -> threading.Lock:
        """The lock, to be used in a ``with`` statement."""
        return self._locks.setdefault(os.getpid(), threading.Lock())
