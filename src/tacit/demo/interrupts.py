"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class DeferredInterrupt:
    """While this is entered, Ctrl-C raises KeyboardInterrupt at the next :meth:`check`, not in mid-step.

    A second Ctrl-C raises at once. Outside the main thread, which alone gets signals, it does nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self._active = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> DeferredInterrupt:
        if self._active:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._asked:
            raise KeyboardInterrupt
