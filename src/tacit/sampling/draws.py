"""The link between loader and optimizer: every drawn batch is released at most once."""

from collections.abc import Sequence
from dataclasses import dataclass

from tacit.errors import SamplingError

_NOTHING_DRAWN = (
    "This step would release a gradient although nothing was drawn from the private loader: "
    "the original DataLoader was iterated, a batch made by hand, or drawn before a checkpoint was loaded. "
    "It would be accounted as if it had been sampled, and epsilon would not cover it. Iterate the loader that "
    "make_private returned."
)


@dataclass(frozen=True)
class Draw:
    """One logical batch, as the private loader drew it.

    Attributes:
        index: how many logical batches this log saw before (0 for the first).
        epoch: which iteration over the loader it belongs to (1 for the first).
        records: how many units of privacy the logical batch has (0 for an empty Poisson batch).
        place: how many batches were drawn before in this iteration.
    """

    index: int
    epoch: int
    records: int
    place: int = 0


class DrawLog:
    """Which draws the pending gradient was made of, and which were released.

    The accountants' theorems (see :mod:`tacit.accounting`) take each drawn batch as the input of one
    release. The loader reports what it hands out (:meth:`drawn`, :meth:`physical`), the engine what it
    differentiates (:meth:`used`) and clears (:meth:`discard`), the optimizer what it releases
    (:meth:`take`). A batch that is drawn and never differentiated, as in an evaluation pass,
    contributes to nothing.
    """

    def __init__(self) -> None:
        self._count = 0
        self._current: Draw | None = None
        self._contributions: list[Draw] = []
        # Only indices that can still be taken: those of the contributions and of the current draw.
        self._released: set[int] = set()
        self._undrawn_contribution = False
        self._physical_records = 0
        self._handed_out = 0
        self._differentiated = 0
        self._touched = True
        self._piece = 0
        self._skipped = False
        self._overtaken = False

    @property
    def overtaken(self) -> bool:
        """The same as ``skipped``, where batches without records do not count."""
        return self._overtaken

    @property
    def skipped(self) -> bool:
        """Whether, in this iteration, a batch (or a piece) was followed by another before it was differentiated."""
        return self._skipped

    @property
    def current(self) -> Draw | None:
        """The logical batch handed out last, or None before the first."""
        return self._current

    @property
    def current_released(self) -> bool:
        """Whether the current draw has been released."""
        return self._current is not None and self._current.index in self._released

    @property
    def physical_records(self) -> int:
        """How many records the physical batch now at hand has (0 before the first)."""
        return self._physical_records

    @property
    def contributed(self) -> bool:
        """Whether a backward on an unreleased draw is pending."""
        return any(draw.index not in self._released for draw in self._contributions)

    def drawn(self, records: int, epoch: int, place: int = 0) -> None:
        """The loader hands out a new logical batch of ``records`` records, the ``place``-th of its epoch."""
        if self._current is None or self._current.epoch != epoch:
            self._begin_iteration()
        self._current = Draw(self._count, epoch, records, place)
        self._count += 1
        self._physical_records = records
        self._handed_out = records
        self._differentiated = 0
        self._forget_unreachable()

    def physical(self, records: int) -> None:
        """The loader hands out ``records`` records of the current logical batch."""
        self._skipped |= not self._touched
        self._overtaken |= not self._touched and self._piece > 0
        self._touched, self._piece = False, records
        self._physical_records = records
        # The pieces of one logical batch add up to its records; its first entry stands for the whole.
        self._handed_out = max(self._handed_out, records)

    def used(self, samples: int, fresh: bool) -> None:
        """A private backward ran on the current draw.

        Args:
            samples: how many samples it clipped, each by itself.
            fresh: the gradients were empty before it, so that earlier contributions are gone.

        Raises:
            SamplingError: more samples were clipped than records were handed out, so that a record counts several
                times.
        """
        if fresh:
            self.discard()
        self._touched = True
        if self._current is not None:
            self._differentiated += samples
            if self._differentiated > self._handed_out:
                raise SamplingError(
                    f"{self._differentiated} samples were differentiated in this step, but the loader handed out "
                    f"{self._handed_out} records: a record that appears several times (a second forward and "
                    "backward, augmented copies, segments, rows of one record) would be clipped each time and count "
                    "several times its bound. Join a record's rows in one forward and one backward (a dimension of "
                    "their own, summed losses). Rows that are no records (generated samples) go into "
                    "`with engine.synthetic():`. A loader that is read ahead must be iterated in step."
                )
        if self._current is None:
            self._undrawn_contribution = True
        elif self._current not in self._contributions:
            self._contributions.append(self._current)

    def take(self) -> tuple[Draw, ...]:
        """The draws that one release consumes; they cannot be released again.

        Returns:
            The draws that contributed to the pending gradient, oldest first. Where none is pending
            (no backward ran since, a noise-only step), the current draw alone.

        Raises:
            SamplingError: nothing was drawn from the private loader, or a draw was released before.
        """
        if self._current is None or self._undrawn_contribution:
            raise SamplingError(_NOTHING_DRAWN)
        draws: Sequence[Draw] = self._contributions
        if all(draw.index in self._released for draw in draws) and self._current not in draws:
            draws = [self._current]
        if any(draw.index in self._released for draw in draws) and self._current.index not in self._released:
            raise SamplingError(
                "The gradient of the last step is still in .grad, and would be released again with this batch's. "
                "Call optimizer.zero_grad() before backward()."
            )
        for draw in draws:
            if draw.index in self._released:
                raise SamplingError(
                    f"Draw {draw.index} (epoch {draw.epoch}) was released already: "
                    "two optimizer steps on one batch; draw a new batch for each step. The same happens if "
                    "the original DataLoader was iterated, or a batch made by hand (iterate the loader that "
                    "make_private returned), or if gradients were not cleared after the last step (call "
                    "optimizer.zero_grad()). A second release of one draw is not covered by epsilon."
                )
        self._released.update(draw.index for draw in draws)
        self._differentiated = 0
        self._touched = True
        return tuple(draws)

    def discard(self) -> None:
        """Forget what contributed: the pending gradient was thrown away."""
        self._contributions = []
        self._differentiated = 0
        self._undrawn_contribution = False
        self._forget_unreachable()

    def restart(self) -> None:
        """Forget all draws, as when a checkpoint is loaded: none of before may be released after it."""
        self._current = None
        self._physical_records = self._handed_out = 0
        self._begin_iteration()
        self.discard()

    def _begin_iteration(self) -> None:
        self._touched, self._skipped, self._overtaken = True, False, False

    def _forget_unreachable(self) -> None:
        reachable = {draw.index for draw in self._contributions}
        if self._current is not None:
            reachable.add(self._current.index)
        self._released &= reachable
