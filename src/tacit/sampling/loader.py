"""The DataLoader that draws batches as the accountant was told."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from tacit.entropy import system_generator
from tacit.errors import ConfigurationError, SamplingError
from tacit.sampling.base import Sampling
from tacit.sampling.collate import EmptyAwareCollate
from tacit.sampling.draws import DrawLog
from tacit.sampling.generators import check_generator, user_generator
from tacit.sampling.handouts import Handout, HandoutSampler
from tacit.sampling.parts import Part


class PrivateLoader(DataLoader[Any]):
    """A DataLoader over the source's dataset whose batches come from a :class:`Sampling`.

    Batches look as the source's do; an empty Poisson batch has the same structure with a first
    dimension of 0. ``len()`` is the number of logical batches in an epoch. Build it with
    :func:`private_loader`.

    Attributes:
        source: the loader it was made from.
        sampling: how batches are drawn.
        draws: the log that is told of each logical batch at the moment it is handed out.
        managed: a BatchMemoryManager is splitting its batches.
        on_batch: is shown every physical batch when it is handed out, with what is known of it.
    """

    def __init__(
        self,
        source: DataLoader[Any],
        sampling: Sampling,
        draws: DrawLog,
        generator: torch.Generator | None,
        part: Part,
    ) -> None:
        self.source = source
        self.sampling = sampling
        self.draws = draws
        self.managed = False
        self.on_batch: Callable[[Any, Handout], None] | None = None
        self._sampler = HandoutSampler(sampling, generator, part)
        self._part = part
        self._purpose = "a run"
        self._epoch = 0
        self._iterations = 0
        self._resumed = 0
        super().__init__(
            source.dataset,
            batch_sampler=self._sampler,
            num_workers=source.num_workers,
            collate_fn=EmptyAwareCollate(source.dataset, source.collate_fn, part.rows(sampling.padded_size)),
            pin_memory=source.pin_memory,
            timeout=source.timeout,
            worker_init_fn=source.worker_init_fn,
            multiprocessing_context=source.multiprocessing_context,
            # Seeds the workers, as it does in the source; the sampler has its own.
            generator=source.generator,
            prefetch_factor=source.prefetch_factor,
            persistent_workers=source.persistent_workers,
            pin_memory_device=source.pin_memory_device,
            in_order=source.in_order,
        )

    def __getstate__(self) -> dict[str, Any]:
        raise ConfigurationError(
            "a private loader cannot be copied or pickled: two would count their epochs alike, and what both hand out "
            "would be accounted as one pass over the data."
        )

    @property
    def epoch(self) -> int:
        """How many iterations over the loader were started; the draws of the latest carry this number."""
        return self._epoch

    def renew(self, purpose: str) -> None:
        """Draw coming epochs for another purpose than those before: where a shared key draws them, they are others."""
        self._purpose = purpose

    def resume(self, epoch: int) -> None:
        """Go on counting after ``epoch``, as when training resumes from a checkpoint. Iterations that go on are over.

        Raises:
            ConfigurationError: ``epoch`` is less than the present one; two epochs of one number
                would be accounted as one.
        """
        if epoch < self._epoch:
            raise ConfigurationError(
                f"Cannot resume at epoch {epoch}: epoch {self._epoch} has begun already, and two epochs of "
                "one number would be accounted as one. Load the checkpoint before iterating the loader."
            )
        self._epoch = epoch
        self._resumed += 1
        self.draws.restart()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """One epoch of logical batches."""
        for _, batch in self.handouts(None):
            yield batch

    def handouts(self, max_records: int | None) -> Iterator[tuple[Handout, Any]]:
        """One epoch of batches with what each is part of, split to at most ``max_records`` records.

        Each is entered in ``draws`` when it is handed out, not when a worker prefetches it.

        Raises:
            SamplingError: another iteration took over the persistent workers of this one, or a checkpoint was loaded.
        """
        self._epoch += 1
        self._iterations += 1
        epoch, iteration, resumed = self._epoch, self._iterations, self._resumed
        self._sampler.max_records = max_records
        if self._part.key is not None:
            self._sampler.generator = self._part.generator(epoch, self._purpose)
        batches = super().__iter__()
        waiting = self._sampler.latest.waiting
        place = 0
        while True:
            if self.persistent_workers and iteration != self._iterations:
                raise SamplingError(
                    "The loader was iterated anew while an earlier iteration was going on; with "
                    "persistent_workers both share one queue, and batches could not be matched to their "
                    "draws. Finish one loop before the next, or build the DataLoader without "
                    "persistent_workers."
                )
            if resumed != self._resumed:
                raise SamplingError(
                    "A checkpoint was loaded while this iteration over the loader was going on: its batches would be "
                    "counted with those of another pass. Iterate the loader anew."
                )
            try:
                batch = next(batches)
            except StopIteration:
                return
            handout = waiting.popleft()
            if handout.first:
                self.draws.drawn(handout.logical_records, epoch, place)
                place += 1
            self.draws.physical(handout.records)
            if self.on_batch is not None:
                self.on_batch(batch, handout)
            yield handout, batch


def private_loader(
    source: DataLoader[Any],
    sampling: Sampling,
    draws: DrawLog,
    generator: torch.Generator | None = None,
    part: Part | None = None,
) -> PrivateLoader:
    """The private counterpart of ``source``.

    Args:
        source: the loader the user built, as accepted by :func:`tacit.sampling.check_source`.
        sampling: how to draw, from ``PoissonSampling.from_loader`` or ``EpochSampling.from_loader``.
        draws: the log shared with the engine and the optimizer.
        generator: draws the indices. If None, the generator that the source or its sampler was built
            with; if that is None too, entropy of the operating system where privacy relies on the
            draw (``torch.manual_seed`` does not make it predictable), else torch's global generator
            as in an ordinary DataLoader.
        part: which part of every batch this process takes, of several; its key then draws all indices.

    Raises:
        SamplingError: ``sampling`` is for another number of records.
        ConfigurationError: a generator that is not on the CPU.
    """
    records = len(source.dataset)  # type: ignore[arg-type]
    if records != sampling.records:
        raise SamplingError(
            f"The sampling is for {sampling.records} records and the dataset has {records}; epsilon would be "
            "computed for another sample rate than is drawn. Make the sampling from this loader."
        )
    part = part or Part()
    if part.key is not None:
        return PrivateLoader(source, sampling, draws, None, part)
    if generator is None:
        generator = user_generator(source)
    else:
        check_generator(generator)
    if generator is None and sampling.amplified:
        generator = system_generator()
    return PrivateLoader(source, sampling, draws, generator, part)
