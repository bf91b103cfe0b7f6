"""The progress bar."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tacit.numbers import upward

Advance = Callable[[int, float, float, float | None], None]


class TrainingProgress:
    """A bar for each training run, on stderr: step, loss of the batch, test accuracy and ε so far."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=24),
            TextColumn("step {task.completed}/{task.total}"),
            TextColumn("{task.fields[reading]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )

    def __enter__(self) -> TrainingProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def bar(self, name: str, steps: int, done: int = 0) -> Advance:
        """Add a bar.

        Returns:
            a function of steps done, loss, accuracy and ε (None without privacy), to call after each step.
        """
        task = self._bars.add_task(name, total=steps, completed=done, reading="")

        def advance(step: int, loss: float, accuracy: float, epsilon: float | None) -> None:
            spent = "" if epsilon is None else f"  ε {upward(epsilon)}"
            reading = f"loss {loss:.3f}  accuracy {accuracy:.3f}{spent}"
            self._bars.update(task, completed=step, reading=reading)

        return advance
