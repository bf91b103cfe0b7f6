"""Private training that can be interrupted and resumed without losing count of the budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from tacit.accounting import PoissonRelease, create_accountant
from tacit.checkpoint import read_settings
from tacit.demo.data import Digits
from tacit.demo.evaluation import accuracy
from tacit.demo.files import CHECKPOINT, RECORD
from tacit.demo.interrupts import DeferredInterrupt
from tacit.demo.network import build_network, build_optimizer
from tacit.demo.options import DemoOptions
from tacit.demo.progress import TrainingProgress
from tacit.demo.record import Point, RunRecord
from tacit.engine import PrivacyEngine
from tacit.errors import CheckpointError, TacitError

READ_EVERY = 2


class PrivateRun:
    """A private run and its files.

    Attributes:
        network: the model.
        engine: keeps the budget.
        record: options and curves.
        planned_steps: how many releases the whole run makes.
        sample_rate: probability with which an image joins a batch.
    """

    def __init__(self, record: RunRecord, digits: Digits, folder: Path) -> None:
        self.record = record
        self.engine = PrivacyEngine()
        self.network: nn.Module = build_network(record.options.seed)
        self._digits = digits
        self._folder = folder
        self._inner = build_optimizer(self.network)
        # No generator here: it would make the Poisson sampling predictable.
        self._source = DataLoader(digits.train, batch_size=record.options.batch_size, shuffle=True)
        self._optimizer: Optimizer = self._inner
        self._loader: DataLoader[Any] = self._source
        self.steps_per_epoch = len(self._source)
        self.planned_steps = record.options.epochs * self.steps_per_epoch
        self.sample_rate = 1.0 / self.steps_per_epoch

    @classmethod
    def start(cls, options: DemoOptions, digits: Digits, folder: Path) -> PrivateRun:
        """Plan a new run, with the least noise that keeps it within the target, and save it at step 0."""
        run = cls(RunRecord(options), digits, folder)
        _, run._optimizer, run._loader = run.engine.make_private_with_epsilon(
            module=run.network,
            optimizer=run._inner,
            data_loader=run._source,
            target_epsilon=options.epsilon,
            target_delta=options.delta,
            max_grad_norm=options.max_grad_norm,
            epochs=options.epochs,
        )
        # An older run's record must never stand beside this run's checkpoint.
        (folder / RECORD).unlink(missing_ok=True)
        run.save()
        return run

    @classmethod
    def resume(cls, record: RunRecord, digits: Digits, folder: Path) -> PrivateRun:
        """Go on with the run that was saved in ``folder``: same plan, same noise, budget intact.

        Raises:
            CheckpointError: the checkpoint is torn, belongs to another plan, or going on would pass the target.
        """
        path = folder / CHECKPOINT
        run = cls(record, digits, folder)
        settings = read_settings(path)
        planned = {"max_grad_norm": record.options.max_grad_norm, "records": digits.records}
        for name, value in planned.items():
            if settings.get(name) != value:
                raise CheckpointError(
                    f"{path} was made with {name}={settings.get(name)!r} and {RECORD} says {value!r}: they are of "
                    "different runs, and the budget would be wrong. Start without --resume."
                )
        _, run._optimizer, run._loader = run.engine.make_private(
            module=run.network,
            optimizer=run._inner,
            data_loader=run._source,
            noise_multiplier=settings["noise_multiplier"],
            max_grad_norm=record.options.max_grad_norm,
        )
        run.engine.load_checkpoint(path, module=run.network, optimizer=run._optimizer)
        run._check_budget(path)
        record.forget_after(run.steps)
        return run

    @property
    def steps(self) -> int:
        """Releases so far, by the accountant."""
        return self.engine.accountant.steps

    @property
    def epsilon(self) -> float:
        """ε so far, at the δ of the options."""
        return self.engine.get_epsilon(self.record.options.delta)

    def _check_budget(self, path: Path) -> None:
        options, spent = self.record.options, self.engine.accountant
        whole = create_accountant(spent.mechanism())
        whole.load_state_dict(spent.state_dict())
        if self.steps < self.planned_steps:
            rest = PoissonRelease(self.engine.noise_multiplier, self.sample_rate)
            whole.record(rest, self.planned_steps - self.steps)
        if not whole.get_epsilon(options.delta) <= options.epsilon:
            raise CheckpointError(
                f"going on from {path} would end at epsilon {whole.get_epsilon(options.delta):.4f}, above the target "
                f"{options.epsilon:g}: it is not of the run that {RECORD} describes. Start without --resume."
            )

    def save(self) -> None:
        """Write the checkpoint, then the record: a record is never ahead of its checkpoint.

        Raises:
            TacitError: the folder cannot be written any more.
        """
        try:
            self.engine.save_checkpoint(self._folder / CHECKPOINT, module=self.network, optimizer=self._optimizer)
            self.record.write(self._folder / RECORD)
        except OSError as error:
            raise TacitError(
                f"the run cannot be saved in {self._folder} ({error.strerror}): make room there, then --resume."
            ) from error

    def train(self, progress: TrainingProgress, on_step: Callable[[int], None]) -> None:
        """Make the releases that are left; whatever happens, save at the end.

        Args:
            progress: shows how far it is.
            on_step: called with the number of releases after each.
        """
        advance = progress.bar("with privacy", self.planned_steps, self.steps)
        point = self._read()
        try:
            with DeferredInterrupt() as interrupt:
                while self.steps < self.planned_steps:
                    for images, labels in self._loader:
                        loss = self._step(images, labels)
                        if self.steps % READ_EVERY == 0 or self.steps in (1, self.planned_steps):
                            point = self._read()
                            self.record.points.append(point)
                        advance(self.steps, loss, point.accuracy, point.epsilon)
                        on_step(self.steps)
                        interrupt.check()
                        # Before the next batch is drawn: none is drawn in vain.
                        if self.steps >= self.planned_steps:
                            break
                    self.save()
        finally:
            self.save()

    def _step(self, images: Any, labels: Any) -> float:
        self._optimizer.zero_grad()
        loss = F.cross_entropy(self.network(images), labels)
        loss.backward()
        self._optimizer.step()
        stats = self.engine.stats
        if stats is not None:
            self.record.add_clipping(self.steps, stats, self.steps_per_epoch)
        return loss.item()

    def _read(self) -> Point:
        return Point(self.steps, accuracy(self.network, self._digits), self.epsilon)
