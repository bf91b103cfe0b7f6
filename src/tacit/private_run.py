"""What an engine offers while a private run goes on: numbers, checks, checkpoints, and what coming forwards see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from tacit import checkpoint, checkpoint_generators
from tacit.accounting import Accountant
from tacit.attachment import Attachment
from tacit.budget import Budget
from tacit.capture import check_index
from tacit.checking.check import CheckReport, check_model
from tacit.checking.reference import LossFunction
from tacit.clipping import Bounds
from tacit.errors import ConfigurationError
from tacit.explanation import Explanation
from tacit.first_step import FirstStep
from tacit.plan import PrivacyPlan, check_number
from tacit.planning import last_epoch
from tacit.sampling import user_generator
from tacit.statement import GIVEN_DRAWS, Statement, make_statement
from tacit.stats import ClipStats


class PrivateRun:
    """The part of a PrivacyEngine that needs no attaching."""

    def __init__(self, accountant: Accountant) -> None:
        self._accountant = accountant
        self._attachment: Attachment | None = None
        self._waiting: Mapping[str, Any] = {}

    @property
    def accountant(self) -> Accountant:
        """Records every release. It cannot be replaced: what was released stays on record."""
        return self._accountant

    @property
    def _attached(self) -> Attachment:
        if self._attachment is None:
            raise ConfigurationError("this engine has no private model: call make_private() first.")
        return self._attachment

    def check(self, loss_fn: LossFunction, batch: Any, *, criterion: Any = None) -> CheckReport:
        """Hold the private model and its loss to the loop over single samples, on a few samples and without noise.

        Nothing is released or drawn; the model, its gradients and the random generators stay as they are. Dropout and
        torch's random functions are switched off meanwhile.

        Args:
            loss_fn: ``loss_fn(model, batch)`` → the scalar loss, as in training; with ``criterion`` it gets that third.
            batch: what ``loss_fn`` takes: tensors, or containers of tensors.
            criterion: the plain loss, where ``loss_fn`` takes one.

        Returns:
            A report that names what mixes samples: a layer by its path, the loss, a wrong batch dimension or reduction.
        """
        attached = self._attached
        return check_model(
            attached.module,
            loss_fn,
            batch,
            grad_sample_mode=attached.settings.mode,
            loss_reduction=attached.plan.loss_reduction,
            batch_first=attached.settings.batch_first,
            criterion=criterion,
        )

    @contextmanager
    def synthetic(self) -> Iterator[None]:
        """Say that the forwards in this block see rows that are no records, such as a generator's samples.

        They are clipped like any others, but are not counted against the records that the loader handed out: a critic
        may differentiate a real and a generated batch in one step. Records, or anything computed from them, must
        not pass here.
        """
        session = self._attached.session
        session.synthetic = True
        try:
            yield
        finally:
            session.synthetic = False

    @contextmanager
    def samples(self, index: Tensor) -> Iterator[None]:
        """Say which rows of the batch are one unit of privacy, for the forwards in this block.

        Rows with the same number are clipped together: the augmentations of one image, the pieces of one document, all
        rows of one user. A unit's gradient is that of the loss of a batch that holds this unit alone.

        Args:
            index: ``(R,)``, integers: the unit of each row.

        Raises:
            ConfigurationError: ``index`` is no vector of integers; and in a forward, if it does not fit the batch.
            PrivacyError: in a forward, if units are not the items that the loader drew.
        """
        check_index(index)
        session = self._attached.session
        before, session.index = session.index, index
        try:
            yield
        finally:
            session.index = before

    def get_epsilon(self, delta: float) -> float:
        """Return the ε at ``delta`` of all that was released so far (0 if nothing was); it takes about 0.05 s.

        With a ledger it is that of all runs in it, also of those that go on at the same time.
        """
        if self._attachment is not None:
            self._attachment.catch_up()
        return self.accountant.get_epsilon(delta)

    def statement(self, delta: float, *, unit: str | None = None, not_covered: Sequence[str] = ()) -> Statement:
        """Say what was promised so far: ``.text``, ``.markdown``, ``.to_json()``.

        Args:
            delta: probability with which the bound may fail.
            unit: what one unit of privacy is, in a word: by default "record", or "user" where users are sampled.
            not_covered: sentences on more that ε says nothing about, such as how hyper-parameters were found.
        """
        attached = self._attached
        attached.catch_up()
        ledger = None if attached.ledger is None else attached.ledger.path.name
        if attached.plan.sampling.amplified and user_generator(attached.loader.source) is not None:
            not_covered = [GIVEN_DRAWS, *not_covered]
        return make_statement(
            self.accountant,
            attached.plan,
            delta=delta,
            unit=unit or attached.plan.sampling.unit,
            noise_source=self.noise_source,
            ledger=ledger,
            not_covered=not_covered,
        )

    def budget(self, epsilon: float, delta: float) -> None:
        """Stop the present run before its ε at ``delta`` passes ``epsilon``.

        The step that would pass it raises :class:`tacit.errors.BudgetError` before anything is released.

        Raises:
            ConfigurationError: an argument is outside its range, or there is no private model yet.
        """
        self._attached.budget = Budget(epsilon, delta)

    @property
    def remaining_steps(self) -> int:
        """How many more steps like the coming one keep to the budget.

        Where steps of one epoch differ from those of another, at most 1000 epochs are looked at.

        Raises:
            ConfigurationError: no budget was set.
        """
        attached = self._attached
        if attached.budget is None:
            raise ConfigurationError("no budget was set: call engine.budget(epsilon, delta) first.")
        attached.catch_up()
        return attached.budget.remaining(self.accountant, attached.coming, most=attached.horizon)

    def explain(self, *, measure: bool = False) -> Explanation:
        """Say how the last backward held and clipped each parameter's per-sample gradients: ``print(….text)``.

        Args:
            measure: time the strategies of matrix products that have not been timed yet, on made-up numbers.
        """
        attached = self._attached
        notes = attached.notes
        return Explanation(
            tuple(notes[name].explain(name, measure=measure) for name in attached.parameters if name in notes)
        )

    @property
    def plan(self) -> PrivacyPlan:
        """What decides ε in the present run."""
        return self._attached.plan

    @property
    def noise_multiplier(self) -> float:
        """The noise multiplier of coming steps. It may be set between steps, for a schedule; each is recorded."""
        return self.plan.noise_multiplier

    @noise_multiplier.setter
    def noise_multiplier(self, value: float) -> None:
        check_number("noise_multiplier", value, zero=True)
        self._attached.change(noise_multiplier=value)

    @property
    def max_grad_norm(self) -> Bounds:
        """The clipping bound (or bounds) of coming backwards. It may be set between steps; the noise follows it."""
        return self.plan.max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: Bounds) -> None:
        self._attached.change(max_grad_norm=value)

    @property
    def stats(self) -> ClipStats | None:
        """Norms and clipping of the last backward in this process; None before the first.

        For the trainer's eyes: not private.
        """
        return self._attached.stats

    def gather_stats(self) -> ClipStats | None:
        """The same of all processes that train together. Each of them must call it."""
        return self._attached.gathered_stats()

    @property
    def first_step(self) -> FirstStep | None:
        """What the first step was seen to do; None before it. ``print(engine.first_step.text)``. Not private."""
        return self._attached.first_step

    @property
    def noise_source(self) -> str:
        """Where the noise comes from, in words."""
        return self._attached.noise.description

    def save_checkpoint(
        self, path: str | Path, *, module: nn.Module, optimizer: Optimizer, sharded: bool = False
    ) -> None:
        """Save model, inner optimizer, accountant, settings and given generators, all or nothing.

        With ``fully_shard`` all processes must call it; process 0 writes the whole model. As many processes as there
        are then, be it one with a plain model, may go on from the file.

        Args:
            path: the file, or the folder; it is replaced only once the new one is whole.
            module: the model: its plain ``state_dict``.
            optimizer: the private optimizer (or the one inside).
            sharded: write a folder, on a file system that all processes share: each writes its own part, with torch's
                DCP (distributed checkpoint). All of them must call it, with DistributedDataParallel, too.

        Raises:
            CheckpointError: it cannot be written there. Nothing was saved, and what was there before still is.
        """
        checkpoint.save(Path(path), module, optimizer, self.accountant, self._attachment, sharded=sharded)

    def load_checkpoint(self, path: str | Path, *, module: nn.Module, optimizer: Optimizer) -> None:
        """Load what :meth:`save_checkpoint` wrote, a file or a folder, all or nothing.

        Call it after ``make_private`` on the same data, in each process. Noise multiplier and clipping bound are the
        saved ones from then on, so that a calibrated run goes on as it was planned. With ``fully_shard``, and from a
        folder, each process keeps its own part only. Folders are unpickled by torch: load those that you trust.

        Raises:
            CheckpointError: it is damaged or foreign, does not fit the model or optimizer, or knows of fewer
                releases than this engine made. Nothing is changed then.
        """
        self._waiting = checkpoint.load(Path(path), module, optimizer, self.accountant, self._attachment)
        self._go_on()

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints of your own must have beside the states of model and optimizer.

        It is all that :meth:`save_checkpoint` saves besides them: without the releases so far, ε would start at zero
        again. With ``fully_shard`` all processes must call it. torch's DCP (distributed
        checkpoint) takes an engine as it takes a model.
        """
        return checkpoint.engine_state(self.accountant, self._attachment)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; see :meth:`load_checkpoint`.

        Raises:
            CheckpointError: it does not fit this run, or knows of fewer releases than this engine made. Nothing is
                changed then.
        """
        self._waiting = checkpoint.load_engine_state(state, self.accountant, self._attachment)
        self._go_on()

    def _go_on(self) -> None:
        """Take the history for that of this run from now on: no draws and no epoch of it come again."""
        if self._attachment is not None:
            self._attachment.follow()
            self._attachment.loader.renew(f"a run that went on after {self.accountant.steps} releases")
            self._attachment.loader.resume(max(last_epoch(self.accountant.history), self._attachment.loader.epoch))
            self._attachment.planned_steps = None

    def _go_on_from_before(self) -> None:
        """The run that begins goes on from releases of this engine, or from a checkpoint that was loaded before it.

        Raises:
            CheckpointError: the generators that were given are of another kind than those in the checkpoint.
        """
        if self.accountant.steps:
            self._go_on()
        if self._waiting:
            checkpoint_generators.check(self._waiting, self._attached, "the checkpoint that was loaded")
            checkpoint_generators.restore(self._attached, self._waiting)
            self._waiting = {}
