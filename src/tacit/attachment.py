"""One private run: the model's session, optimizer and loader, tied together."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

from tacit import uneven
from tacit.accounting import Accountant, Release
from tacit.budget import Budget
from tacit.capture import AveragedGuard, Clip, LeakGuard, Pass, Session, ShardedGuard, read_field
from tacit.criterion import PrivateCriterion
from tacit.distributed import Averaging, Group, Sharding, local
from tacit.errors import ConfigurationError, PrivacyError, SamplingError
from tacit.explanation import Note, note
from tacit.first_step import FirstStep, Witness
from tacit.ghost import GhostClipper
from tacit.joint import Checksums, Since, gradient_facts, noise_key, pending_facts, plan_facts, shared_key
from tacit.layerwise import LayerwiseClipper
from tacit.ledger_copy import Book
from tacit.loss_scale import LossScale
from tacit.mechanisms import NoiseSource
from tacit.optimizer import PrivateOptimizer
from tacit.plan import PrivacyPlan
from tacit.recording import Recorder
from tacit.sampling import Batch, DrawLog, Handout, Part, Piece, Sampling, private_loader, user_generator
from tacit.settings import Settings
from tacit.stats import ClipStats
from tacit.step import Clipper, Coming, Factors, Releaser
from tacit.still import StillWeights
from tacit.uses import FastMatmul, Use
from tacit.validation import plain_module, renew_compiled_wrappers


class Attachment:
    """Everything that one ``make_private`` set up. It also observes each clipped batch."""

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
        loader: DataLoader[Any],
        plan: PrivacyPlan,
        settings: Settings,
        accountant: Accountant,
        ledger: Book | None = None,
        group: Group | None = None,
    ) -> None:
        if settings.sample_index is not None:  # before anything is touched
            _check_index(plan.sampling)
        self.group = Group(alone=True) if group is None else group
        self.module = module
        self.parameters = dict(parameters)
        self.plan = plan
        self.settings = settings
        self._stats: ClipStats | None = None
        self.sharding = Sharding.of(parameters)
        self.noise = self._noise_source()
        trained = [local(p) for p in parameters.values() if p.requires_grad]
        self.noise.prepare(trained, moving=type(optimizer) is SGD)
        self.draws = DrawLog()
        drawing = shared_key(self.group, user_generator(loader))
        part = Part(self.group.rank, self.group.count, drawing)
        self.loader = private_loader(loader, plan.sampling, self.draws, part=part)
        self.notes: dict[str, Note] = {}
        self._coming_notes: dict[str, Note] = {}
        self._used: set[str] = set()
        self._rows: dict[Batch, list[Tensor]] = {}
        self._still = StillWeights(() if self.sharding else parameters.values())  # shards are written by others, too
        self._checked_use = False
        self._accountant = accountant
        self.ledger = ledger
        self.budget: Budget | None = None
        self._recorder = Recorder(accountant, ledger, self.group)
        self._recorder.begin(
            records=plan.sampling.units,
            sampler=plan.sampling.description,
            noise=self.noise.description,
            unit=plan.sampling.unit,
        )
        accountant.claim(plan.sampling.unit)
        self._warned: set[str] = set()
        self.planned_steps: int | None = None
        self.first_step: FirstStep | None = None
        self._scale = LossScale(settings.grad_scaler)
        self.session = Session(
            plain_module(module),
            parameters,
            self._clip(),
            batch_first=settings.batch_first,
            at_hand=self._batch_at_hand,
            apart=settings.mode == "functorch",
            memory_budget=settings.memory_budget,
            measured=settings.tune == "measure",
            guard=self._guard(),
            entered=self._look_around,
        )
        renew_compiled_wrappers(module)
        self.averaging = self._averaging()
        self._checksums = Checksums(parameters)
        self._since = Since()
        self._fast = FastMatmul()
        if settings.fast_matmul:
            self._fast.begin()
        self._release = Releaser(
            lambda: self.plan,
            self.parameters,
            self.session.guard,
            self.draws,
            self.noise,
            self._record,
            self._agree,
            self._averaged_over,
        )
        self.loader.on_batch = self._look_at
        self.optimizer = PrivateOptimizer(
            optimizer, self._on_release, self._on_forget, self.averaging.hold, self._on_step, self._release.awaited
        )
        self._scale.hold()

    def _clip(self) -> Clip:
        """How the backwards of this run are clipped."""
        settings, keep_dense = self.settings, self.settings.mode == "hooks"
        clipper = Clipper(lambda: self.plan, self, keep_dense=keep_dense, loss_scale=lambda: self._scale.value)
        layerwise = LayerwiseClipper(clipper) if not self.plan.policy.uniform and not keep_dense else None
        two_passes = settings.mode == "ghost" or settings.memory_budget is not None
        return GhostClipper(clipper, layerwise) if two_passes else layerwise or clipper

    def _noise_source(self) -> NoiseSource:
        """One noise for the whole model: all processes that hold the same parameters make the same."""
        key = shared_key(self.group, self.settings.noise_generator)
        if self.sharding is None:
            return NoiseSource(self.settings.noise_generator, key=key)
        self.group.shard = self.sharding.shard
        holders = "all processes with the same shard"
        return NoiseSource(self.settings.noise_generator, key=noise_key(key, self.sharding), holders=holders)

    def _guard(self) -> LeakGuard:
        if self.sharding is not None:
            return ShardedGuard()
        return AveragedGuard(required=self.group.count > 1) if self.group.is_set_up else LeakGuard()

    def _averaging(self) -> Averaging:
        guard = self.session.guard
        watcher = guard if isinstance(guard, AveragedGuard) else None
        return Averaging(self.group, self.parameters, watcher, ghost=self.settings.mode == "ghost")

    @property
    def _averaged_over(self) -> int:
        """Of how many processes ``.grad`` holds the mean. A sharded one holds the sum."""
        return self.group.count if self.sharding is None else 1

    @property
    def stats(self) -> ClipStats | None:
        """The statistics of the last backward. A GPU is waited for only by who looks at them."""
        if self._stats is not None:
            self._stats = self._stats.on_cpu()
        return self._stats

    def gathered_stats(self) -> ClipStats | None:
        """The statistics of all processes' last backwards together."""
        every = [stats for stats in self.group.gathered(self.stats) if stats is not None]
        if not every:
            return None
        return dataclasses.replace(
            every[0],
            samples=sum(stats.samples for stats in every),
            norms=torch.cat([stats.norms for stats in every]),
            scaled=torch.cat([stats.scaled for stats in every]),
        )

    def _look_around(self) -> None:
        self.averaging.look()

    def _agree(self, prepare: Callable[[], Coming]) -> Coming:
        """Prepare a release, if all processes can and are about to release the same."""

        def prepared() -> Coming:
            self._scale.check()
            return prepare()

        return self.group.together(prepared, self._facts, self._own_facts)

    def _facts(self, coming: Coming) -> dict[str, object]:
        """What must be the same in all processes for them to release the same, and to count it alike."""
        return {
            **plan_facts(self.plan),
            "the release": coming.event,
            "batches, by number, epoch and place": [(draw.index, draw.epoch, draw.place) for draw in coming.draws],
            "standard deviation of the noise": coming.std,
            "budget": None if self.budget is None else (self.budget.epsilon, self.budget.delta),
            "releases so far": self._accountant.steps if self.ledger is None else "in the ledger",
            "trained parameters": [name for name, p in self.parameters.items() if p.requires_grad],
            **pending_facts(self.parameters),
            "backwards that found no gradients, clearings and zeroed gradients since the last release": (
                self._since.fresh,
                self._since.cleared,
                self.session.guard.zeroed,
            ),
            "sums that were added up and arrived, in their order": self._settled,
        }

    @property
    def _settled(self) -> int:
        guard = self.session.guard
        return guard.settled if isinstance(guard, ShardedGuard) else 0

    def _own_facts(self) -> dict[str, object]:
        """What must be the same in all processes that hold the same parameters."""
        return {
            "numbers drawn for noise": self.noise.position,
            **gradient_facts(self.parameters),
            **self._checksums.facts(),
        }

    def catch_up(self) -> None:
        """Let the accountant know of what other runs have written into the ledger since."""
        self._recorder.catch_up()

    def follow(self) -> None:
        """The history is another one now, of which the loader knows."""
        self._recorder.follow()

    def coming(self, releases: int, draws: int = 1) -> list[tuple[Release, int]]:
        """What the coming releases will be, from the batch at hand on."""
        at, sampling = self.draws.current, self.plan.sampling
        epoch, place = (self.loader.epoch + 1, 0) if at is None else (at.epoch, at.place)
        if at is not None and self.draws.current_released:
            place += 1
        if place >= sampling.steps_per_epoch:
            epoch, place = epoch + 1, 0
        planned = sampling.planned(self.plan.noise_multiplier, releases, epoch=epoch, place=place, draws=draws)
        return planned if self.ledger is None else self.ledger.planned(planned)

    @cached_property
    def horizon(self) -> int:
        """How many coming releases are worth looking at."""
        sampling = self.plan.sampling
        alike = len(sampling.planned(1.0, 2 * sampling.steps_per_epoch)) == 1
        return 2**40 if alike else 1000 * sampling.steps_per_epoch

    def _record(self, release: Release, draws: int) -> None:
        """Put a release on record, if the budget allows it."""

        def check(counted: Release) -> None:
            if self.budget is not None:
                self.budget.check(self._accountant, counted, lambda n: self.coming(n, draws), most=self.horizon)

        self._recorder.record(release, check)

    def _look_at(self, batch: Any, handout: Handout) -> None:
        """Take note of what is known of a physical batch that is being handed out."""
        if handout.owners is not None:
            self.session.index_of_batch = torch.tensor(handout.owners, dtype=torch.int64)
        elif self.settings.sample_index is not None:
            self.session.index_of_batch = read_field(batch, self.settings.sample_index)
        self.session.padding = handout.padding

    def _batch_at_hand(self) -> tuple[Piece, int] | None:
        piece = self.draws.at_hand
        return None if piece is None else (piece, self.draws.physical_records + self.session.padding)

    def criterion(self, criterion: Callable[..., Any]) -> PrivateCriterion:
        return PrivateCriterion(criterion, self.session, self.plan.loss_reduction)

    def change(self, **values: Any) -> None:
        """Put a changed plan into force, for coming backwards and releases."""
        self.plan = dataclasses.replace(self.plan, **values)

    def used(self, name: str, use: Use) -> None:
        """Take note of how gradients are held that are about to be normed."""
        self._coming_notes[name] = note(use)

    def clipped(self, run: Pass, factors: Factors, uses: Mapping[str, Use]) -> None:
        """Take note of a clipped physical batch."""
        self._release.clipped_to(factors.sensitivity)
        self._pay_for_rounding(run)
        # Whether there are gradients, never what they are: accounting must not depend on the data.
        fresh = all(p.grad is None for p in self.parameters.values())
        self._since.fresh += fresh
        if fresh and self.optimizer.accumulating:
            raise PrivacyError(
                "the gradients of earlier pieces of this batch were cleared (model.zero_grad(), or .grad = None), "
                "so the step would miss their records. Call optimizer.zero_grad(), which keeps them until the step."
            )
        if not run.synthetic:
            self._refuse_reading_ahead()
            self._refuse_rows_seen(run, fresh=fresh)
            self.draws.used(run.real_units, fresh, run.piece)
            self._still.check()
        self._used.update(factors.by_name)
        self.notes, self._coming_notes = self._coming_notes, {}
        real = slice(run.real_units)
        self._stats = ClipStats(run.real_units, factors.norms[real], factors.sensitivity, factors.scaled[real])
        if self.settings.mode == "hooks":
            self._leave_grad_samples(run, uses)

    def _pay_for_rounding(self, run: Pass) -> None:
        """The others may move the sum, too, as `uneven` says."""
        if run.synthetic or not run.narrow or self.plan.loss_reduction != "mean" or not self.plan.noise_multiplier:
            return
        records, apart = self.plan.sampling.expected_batch_size, self.settings.mode == "functorch"
        part = max(uneven.paid(run.narrow, records, apart=apart), uneven.paid_for_means(run.narrow_sums, records))
        self._release.pay(part)
        names = " and ".join(sorted(str(each).removeprefix("torch.") for each in run.narrow))
        self._warn_once(uneven.WARNING.format(part=part, dtype=names))

    def _refuse_reading_ahead(self) -> None:
        """The piece, or where rows are told by their place the batch, at hand must be the one that was handed out."""
        sampling = self.plan.sampling
        indexed = self.settings.sample_index is not None or sampling.units != sampling.records
        if self.draws.overtaken and self.loader.managed:
            raise SamplingError(
                "a piece of a batch was handed out, and the next one too, before the first was trained on: its records "
                "would be released with another batch. Iterate the loader in step (no prefetching around it), and "
                "train on every piece."
            )
        if self.draws.skipped and (indexed or sampling.padded_size is not None):
            raise SamplingError(
                "a batch was handed out, and the next one too, before the first was trained on. Whose a row is, or "
                "that it is blank, is known of the latest batch only: iterate the loader in step, and train on every "
                "batch, also on empty ones."
            )

    def _refuse_rows_seen(self, run: Pass, *, fresh: bool) -> None:
        """Refuse rows of memory that an earlier backward of this step has differentiated, of the same draw.

        The inputs are held until the step, so that their addresses are not given to others.
        """
        if fresh:
            self._rows.clear()
        if run.piece is None:  # its step is refused
            return
        seen = self._rows.setdefault(run.piece.batch, [])
        if any(_overlap(value, earlier) for value in run.inputs for earlier in seen):
            raise SamplingError(
                "rows of this batch were differentiated already in this step: their records would be clipped "
                "once more, and count twice their bound. Sum the losses and call backward() once for each row."
            )
        seen += run.inputs

    def _leave_grad_samples(self, run: Pass, uses: Mapping[str, Use]) -> None:
        for name, parameter in self.parameters.items():
            use = uses.get(name)
            samples = run.real_units
            if use is None:
                gradients = torch.zeros((samples, *parameter.shape), dtype=parameter.dtype, device=parameter.device)
            else:
                gradients = use.dense()[:samples].to(parameter.dtype)
            parameter.grad_sample = gradients  # type: ignore[attr-defined]

    def _on_release(self, rates: Mapping[int, float]) -> Sequence[Tensor]:
        current = self.draws.current
        witness = Witness(self.parameters) if self.first_step is None else None
        empty_handed = not self.draws.contributed and current is not None and current.records > 0
        moved = self._release(rates)
        self.averaging.clear()
        self._scale.forget()
        self._since, self.session.guard.zeroed = Since(), 0
        if empty_handed:
            self._warn_once(
                "step() was called without a backward() on the batch at hand: noise alone was released, and it counts."
            )
        self._drop_batch()
        self.session.forget()
        self._warn_unused()
        if witness is not None:
            self._watch_first_step(witness)
        if self.planned_steps is not None and self._accountant.steps > self.planned_steps:
            self._warn_once(
                f"the planned {self.planned_steps} steps are done: each further one takes epsilon over its target. "
                "Stop, or calibrate for a longer run."
            )
        return moved

    def _watch_first_step(self, witness: Witness) -> None:
        """Say once, after the optimizer has stepped, what the first step did."""
        noisy = witness.noisy(self.plan.divisor(1) / self._averaged_over)

        def look(*_: Any) -> None:
            handle.remove()
            unused = tuple(self._unused())
            self.first_step = FirstStep(witness.moved(), noisy, self.stats, unused)
            if any(float(group.get("lr", 1.0)) for group in self.optimizer.param_groups):
                for problem in self.first_step.problems:
                    self._warn_once(f"after the first step: {problem}")

        handle = self.optimizer.register_step_post_hook(look)

    def _unused(self) -> list[str]:
        return [name for name, p in self.parameters.items() if p.requires_grad and name not in self._used]

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, UserWarning, stacklevel=5)

    def _warn_unused(self) -> None:
        if self._checked_use or not self._used:
            return
        self._checked_use = True
        unused = self._unused()
        if unused:
            shown = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "")
            self._warn_once(
                f"these trainable parameters had no part in the first step's loss: {shown}. They get noise all the "
                "same; freeze them if they are never used."
            )

    def _drop_batch(self) -> None:
        """Let go of what is held of single samples; it must not reach a file with the model."""
        self._rows.clear()
        for parameter in self.parameters.values():
            parameter.__dict__.pop("grad_sample", None)

    def _on_step(self) -> None:
        """A step begins, be it that of a physical batch only: a GradScaler may have divided gradients for it."""
        self._still.forget()
        there = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        self._scale.undo(there, self.session.guard)
        self._scale.hold()

    def _on_forget(self) -> None:
        self._drop_batch()
        self._since.cleared += 1
        self._release.forget()
        self._scale.forget()
        self.session.guard.reset()
        self.draws.discard()

    def detach(self) -> None:
        self.loader.on_batch = None
        self._fast.end()
        self._scale.detach()
        self.optimizer.discard_pending()  # a clipped sum without noise must not be left for a plain step
        self.averaging.detach()
        self.session.detach()
        renew_compiled_wrappers(self.module)
        self.optimizer.detach()
        self.catch_up()


def _check_index(sampling: Sampling) -> None:
    """Refuse ``sample_index=`` with a sampling that says by itself what rows are."""
    if sampling.units != sampling.records:
        raise ConfigurationError(
            "sample_index= and a sampling of users both say which rows are one unit: leave sample_index out."
        )
    if sampling.padded_size is not None:
        raise ConfigurationError("sample_index= and padding do not go together: sample with padding=False.")


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share memory; by their outermost bounds."""
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr() or not one.numel() or not other.numel():
        return False
    (first, last), (start, end) = _bounds(one), _bounds(other)
    return first <= end and start <= last


def _bounds(value: Tensor) -> tuple[int, int]:
    first = int(value.storage_offset())
    return first, first + sum(
        (int(size) - 1) * int(step) for size, step in zip(value.shape, value.stride(), strict=True)
    )
