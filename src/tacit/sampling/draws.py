"""The link between loader and optimizer: every drawn batch is released at most once."""

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


@dataclass(eq=False)
class Batch:
    """What has become of a draw.

    Attributes:
        draw: the draw.
        handed_out: how many records of it were handed out.
        restarts: how often its log had been restarted when it was drawn.
        differentiated: how many samples of it are in the pending gradient.
        released: it was released, or its release was begun.
    """

    draw: Draw
    handed_out: int
    restarts: int
    differentiated: int = 0
    released: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """One physical batch. A forward keeps the one that was at hand: its backward may run when another one is.

    Attributes:
        batch: the logical batch that it is a piece of.
    """

    batch: Batch


class DrawLog:
    """Which draws the pending gradient was made of, and which were released.

    The accountants' theorems (see :mod:`tacit.accounting`) take each drawn batch as the input of one
    release. The loader reports what it hands out (:meth:`drawn`, :meth:`physical`), the engine what it
    differentiates (:meth:`used`) and clears (:meth:`discard`), the optimizer what it releases
    (:meth:`take`, then :meth:`released`). A batch that is drawn and never differentiated, as in an
    evaluation pass, contributes to nothing.
    """

    def __init__(self) -> None:
        self._count = 0
        self._restarts = 0
        self._at_hand: Piece | None = None
        self._contributions: list[Batch] = []
        self._undrawn_contribution = False
        self._released_is_left = False
        self._physical_records = 0
        self._touched = True
        self._size = 0
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
    def at_hand(self) -> Piece | None:
        """The physical batch handed out last, or None before the first."""
        return self._at_hand

    @property
    def current(self) -> Draw | None:
        """The logical batch handed out last, or None before the first."""
        return None if self._at_hand is None else self._at_hand.batch.draw

    @property
    def current_released(self) -> bool:
        """Whether the current draw has been released."""
        return self._at_hand is not None and self._at_hand.batch.released

    @property
    def physical_records(self) -> int:
        """How many records the physical batch now at hand has (0 before the first)."""
        return self._physical_records

    @property
    def contributed(self) -> bool:
        """Whether a backward on an unreleased draw is pending."""
        return any(not batch.released for batch in self._contributions)

    def drawn(self, records: int, epoch: int, place: int = 0) -> None:
        """The loader hands out a new logical batch of ``records`` records, the ``place``-th of its epoch."""
        current = self.current
        if current is None or current.epoch != epoch:
            self._begin_iteration()
        self._at_hand = Piece(Batch(Draw(self._count, epoch, records, place), records, self._restarts))
        self._count += 1
        self._physical_records = records

    def physical(self, records: int) -> None:
        """The loader hands out ``records`` records of the current logical batch."""
        self._skipped |= not self._touched
        self._overtaken |= not self._touched and self._size > 0
        self._touched, self._size = False, records
        self._physical_records = records
        if self._at_hand is not None:
            self._at_hand = Piece(self._at_hand.batch)
            # The pieces of one logical batch add up to its records; its first entry stands for the whole.
            self._at_hand.batch.handed_out = max(self._at_hand.batch.handed_out, records)

    def used(self, samples: int, fresh: bool, piece: Piece | None) -> None:
        """A private backward ran.

        Args:
            samples: how many samples it clipped, each by itself.
            fresh: the gradients were empty before it, so that earlier contributions are gone.
            piece: what was at hand in its forward.

        Raises:
            SamplingError: more samples were clipped than records were handed out, so that a record counts several
                times.
        """
        if fresh:
            self.discard()
        if piece is None or piece.batch.restarts != self._restarts:
            self._undrawn_contribution = True
            return
        self._touched |= piece is self._at_hand
        batch = piece.batch
        if batch not in self._contributions:
            self._contributions.append(batch)
        batch.differentiated += samples
        if batch.differentiated > batch.handed_out:
            raise SamplingError(
                f"{batch.differentiated} samples were differentiated in this step, but the loader handed out "
                f"{batch.handed_out} records: a record that appears several times (a second forward and "
                "backward, augmented copies, segments, rows of one record) would be clipped each time and count "
                "several times its bound. Join a record's rows in one forward and one backward (a dimension of "
                "their own, summed losses). Rows that are no records (generated samples) go into "
                "`with engine.synthetic():`. A loader that is read ahead must be iterated in step."
            )

    def take(self) -> tuple[Draw, ...]:
        """The draws that one release consumes; they cannot be released again, even if it fails.

        Returns:
            The draws that contributed to the pending gradient, oldest first. Where none is pending
            (no backward ran since, a noise-only step), the current draw alone.

        Raises:
            SamplingError: nothing was drawn from the private loader, or a draw was released before.
        """
        if self._at_hand is None or self._undrawn_contribution:
            raise SamplingError(_NOTHING_DRAWN)
        batches = self._contributions or [self._at_hand.batch]
        self._refuse_released(batches, self._at_hand.batch)
        for batch in batches:
            batch.released, batch.differentiated = True, 0
        self._touched = True
        return tuple(sorted((batch.draw for batch in batches), key=lambda draw: draw.index))

    def released(self) -> None:
        """What was taken has its noise: nothing is pending until the next backward."""
        self._contributions = []
        self._released_is_left = True

    def discard(self) -> None:
        """Forget what contributed: the pending gradient was thrown away."""
        for batch in self._contributions:
            batch.differentiated = 0
        self._contributions = []
        self._undrawn_contribution = self._released_is_left = False

    def restart(self) -> None:
        """Forget all draws, as when a checkpoint is loaded: none of before may be released after it."""
        self._restarts += 1
        self._at_hand = None
        self._physical_records = 0
        self._begin_iteration()
        self.discard()

    def _begin_iteration(self) -> None:
        self._touched, self._skipped, self._overtaken = True, False, False

    def _refuse_released(self, batches: list[Batch], current: Batch) -> None:
        again = next((batch.draw for batch in batches if batch.released), None)
        if again is not None and current.released:
            raise SamplingError(
                f"Draw {again.index} (epoch {again.epoch}) was released already: "
                "two optimizer steps on one batch; draw a new batch for each step. The same happens if "
                "the original DataLoader was iterated, or a batch made by hand (iterate the loader that "
                "make_private returned), or if gradients were not cleared after the last step (call "
                "optimizer.zero_grad()). A second release of one draw is not covered by epsilon."
            )
        if again is not None:
            raise SamplingError(
                f"What is in .grad is of draw {again.index} (epoch {again.epoch}), which was released already: "
                "backward() ran on a batch after its step, or its step failed. This step would release its records "
                "again, which epsilon does not cover. Call optimizer.zero_grad(), then backward() on the batch at hand."
            )
        if self._contributions and self._released_is_left:
            raise SamplingError(
                "The gradient of the last step is still in .grad, and would be released again with this batch's. "
                "Call optimizer.zero_grad() before backward()."
            )
