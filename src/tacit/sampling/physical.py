"""Large logical batches in pieces that fit into memory."""

import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol

from tacit.accounting.checks import checked_count
from tacit.errors import ConfigurationError
from tacit.sampling.loader import PrivateLoader


class MicrobatchTarget(Protocol):
    """What BatchMemoryManager needs of an optimizer."""

    def hold_release(self, hold: bool) -> None:
        """If True, the next ``step()`` only accumulates and the following ``zero_grad()`` clears nothing."""

    def discard_pending(self) -> None:
        """Throw away what was accumulated since the last release."""


class PhysicalBatches:
    """A private loader's batches in pieces; what :class:`BatchMemoryManager` returns.

    ``len()`` is the number of *logical* batches, which is the number of optimizer updates in an
    epoch and what learning-rate schedules need. How many physical batches there will be is not known
    before they are drawn; a progress bar may run past the end.
    """

    def __init__(self, loader: PrivateLoader, max_records: int, target: MicrobatchTarget) -> None:
        self.loader = loader
        self.dataset = loader.dataset
        self._max_records = max_records
        self._target = target
        self._closed = False
        self._handed = 0  # physical batches of the logical batch at hand
        self._ended = True  # its last physical batch was handed out
        self._iteration = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """One epoch of physical batches.

        Raises:
            ConfigurationError: the ``with`` block was left, or another iteration began.
        """
        self._iteration += 1
        iteration = self._iteration
        self.abandon(None)
        batches = self.loader.handouts(self._max_records)
        while True:
            if self._closed or iteration != self._iteration:
                raise ConfigurationError(
                    "These physical batches belong to a loop that is over: the with block was left, or "
                    "another loop began; the rest of their logical batch was thrown away. Iterate only "
                    "inside the with block, one loop at a time."
                )
            try:
                handout, batch = next(batches)
            except StopIteration:
                self._handed = 0
                return
            self._handed = 1 if handout.first else self._handed + 1
            self._ended = handout.last
            self._target.hold_release(not handout.last)
            yield batch

    def close(self, exception: BaseException | None) -> None:
        """End all iterations; see :meth:`abandon`."""
        self._closed = True
        self._target.hold_release(False)
        self.abandon(exception)

    def abandon(self, exception: BaseException | None) -> None:
        """Throw away a logical batch of which only a part was trained on, with a warning.

        Where ``exception`` is on its way, a warning that the filters turn into an error is added to
        it as a note, so as not to mask it.
        """
        unfinished = self._handed > 0 and not self._ended
        # All pieces were handed out, but the step on the last one never came.
        unreleased = self._handed > 1 and not self.loader.draws.current_released
        handed, self._handed, self._ended = self._handed, 0, True
        if not (unfinished or unreleased):
            return
        self._target.hold_release(False)
        self._target.discard_pending()
        self.loader.draws.discard()
        message = (
            f"The loop was left in the middle of a logical batch of epoch {self.loader.epoch}, after "
            f"{handed} of its physical batches; its accumulated gradient was thrown away and nothing of it "
            "was released. To lose nothing, leave the loop after the step that ends a logical batch."
        )
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        except RuntimeWarning:
            if exception is None:
                raise
            exception.add_note(message)


class BatchMemoryManager:
    """Split logical batches into physical ones of at most ``max_physical_batch_size`` records.

    Same use as Opacus's class of this name, with an unchanged training loop inside::

        with BatchMemoryManager(
            data_loader=loader, max_physical_batch_size=32, optimizer=optimizer
        ) as physical:
            for x, y in physical:
                optimizer.zero_grad()
                criterion(model(x), y).backward()
                optimizer.step()  # updates at the last physical batch of a logical one

    The gradient released is the sum over the logical batch, whose expected size alone sets the noise;
    the split changes neither. An empty logical batch is one empty physical batch. Leaving the block in
    mid-logical-batch throws that batch away, with a RuntimeWarning.

    Args:
        data_loader: a loader that make_private returned, not being split already.
        max_physical_batch_size: most records in one physical batch, at least 1.
        optimizer: told before each physical batch whether its step is to release.

    Raises:
        ConfigurationError: an argument is none of these.
    """

    def __init__(
        self, *, data_loader: PrivateLoader, max_physical_batch_size: int, optimizer: MicrobatchTarget
    ) -> None:
        if not isinstance(data_loader, PrivateLoader):
            raise ConfigurationError(
                f"BatchMemoryManager got a {type(data_loader).__name__}; only the loader that make_private "
                "returned knows its logical batches. Pass that one, and do not nest managers."
            )
        checked_count("max_physical_batch_size", max_physical_batch_size)
        if data_loader.sampling.padded_size is not None:
            raise ConfigurationError(
                f"the batches of this loader are padded to {data_loader.sampling.padded_size} rows each, and pieces of "
                "them would be, too. Make the sampling with padding=False to split its batches."
            )
        self._loader = data_loader
        self._max_records = max_physical_batch_size
        self._optimizer = optimizer
        self._batches: PhysicalBatches | None = None

    def __enter__(self) -> PhysicalBatches:
        if self._loader.managed:
            raise ConfigurationError(
                "Another BatchMemoryManager is splitting this loader; nested, the two would disagree about "
                "where a logical batch ends. Leave the first with block before entering the second."
            )
        self._loader.managed = True
        self._batches = PhysicalBatches(self._loader, self._max_records, self._optimizer)
        return self._batches

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loader.managed = False
        batches, self._batches = self._batches, None
        if batches is not None:
            batches.close(exception)
