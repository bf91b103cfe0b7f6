"""The front door: attaches privacy to a user's model, optimizer and loader, and takes it off again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from tacit.accounting import Adjacency, calibrate, create_accountant
from tacit.accounting.events import adjacency_of
from tacit.attachment import Attachment
from tacit.checking.check import check_model
from tacit.checking.reference import LossFunction
from tacit.clipping import Bounds
from tacit.distributed import Group, is_spread, unwrapped
from tacit.errors import CheckpointError, ConfigurationError
from tacit.joint import data_facts, open_ledger, plan_facts, run_facts
from tacit.ledger import Ledger
from tacit.ledger_copy import Book
from tacit.loss_scale import check_scaler, scale_of
from tacit.optimizer import PrivateOptimizer
from tacit.plan import PrivacyPlan
from tacit.planning import planned_history, planned_steps, sampling_of
from tacit.private_run import PrivateRun
from tacit.sampling import Sampling, is_parted
from tacit.settings import Settings
from tacit.validation import Conversion, Issue, check_attachable, compatible, find_issues, loader_issues, raise_all

Parameters = dict[str, nn.Parameter]
"""The private parameters by name."""


class PrivacyEngine(PrivateRun):
    """Trains one model with differential privacy.

    Args:
        accountant: ``"pld"`` (privacy-loss distributions; ``"prv"`` is another name for it) or ``"rdp"``.
        adjacency: which data sets count as neighbours: ``"add-or-remove-one"``, ``"zero-out-one"`` or
            ``"replace-one"``. By default the first of these for which the way of drawing batches has a proof.
        secure_mode: noise from a cryptographic generator (on the CPU), which nobody can reproduce. With False it comes
            from torch's default generator and follows ``torch.manual_seed``: for tests and debugging. It is on record
            in ``noise_source``.

    Attributes:
        accountant: records every release; ``accountant.history`` is what ran.
    """

    def __init__(
        self, *, accountant: str = "pld", adjacency: Adjacency | None = None, secure_mode: bool = True
    ) -> None:
        super().__init__(create_accountant(accountant, adjacency))
        if not isinstance(secure_mode, bool):
            raise ConfigurationError(f"secure_mode={secure_mode!r}: it is True or False.")
        self._secure_mode = secure_mode
        self._ledger: Path | None = None

    def make_private(
        self,
        *,
        module: nn.Module,
        optimizer: Optimizer,
        data_loader: DataLoader[Any],
        noise_multiplier: float,
        max_grad_norm: Bounds,
        criterion: Callable[..., Any] | None = None,
        batch_first: bool = True,
        loss_reduction: str = "mean",
        poisson_sampling: bool = True,
        sampling: str | Sampling | None = None,
        clipping: str = "flat",
        grad_sample_mode: str = "auto",
        noise_generator: torch.Generator | None = None,
        sample_index: str | int | None = None,
        check: tuple[Any, LossFunction] | None = None,
        ledger: str | Path | Ledger | None = None,
        memory_budget: int | None = None,
        tune: str = "predict",
        fast_matmul: bool = False,
        grad_scaler: GradScaler | None = None,
    ) -> tuple[Any, ...]:
        """Make training private.

        Args:
            module: the model; it comes back as the same object, in which nothing is replaced. Of several processes each
                passes its own, in DistributedDataParallel or to be wrapped afterwards, or spread over them by
                ``fully_shard``: see docs/distributed.md.
            optimizer: any torch optimizer over parameters of ``module``. Parameters that it does not step are
                constants: they get no gradient.
            data_loader: a map-style DataLoader over the whole data set. Its ``batch_size`` is that of one process.
            noise_multiplier: standard deviation of the noise, in units of ``max_grad_norm``.
            max_grad_norm: the bound C on the l2 norm of each sample's gradient over all private parameters; with
                ``clipping="grouped"`` a bound for each pattern of parameter names.
            criterion: the loss, for ``grad_sample_mode="ghost"`` (default: ``nn.CrossEntropyLoss()``).
            batch_first: whether the model's inputs carry the batch in dimension 0 (else in dimension 1).
            loss_reduction: how the loss reduces over the batch, ``"mean"`` or ``"sum"``. With several backwards before
                a step, do not divide the loss by their number: the release divides by the expected batch size.
            poisson_sampling: draw each record independently with probability ``1 / len(data_loader)``. If False,
                the loader's own batches are kept and no amplification by sampling is claimed for them.
            sampling: another way of drawing batches: ``"poisson"``, ``"truncated-poisson"``, ``"balls-in-bins"``,
                ``"fixed-size"``, ``"full-batch"``, ``"epochs"`` (the loader's own), or an object of
                :mod:`tacit.sampling`, such as a ``UserPoissonSampling``.
            clipping: the clipping policy. ``"flat"``: all parameters together. ``"per_layer"``: each of the K modules
                that own trainable parameters by itself, to C / √K; clipped inside the backward, so it is cheapest in
                time and memory, but it changes the gradient's direction. ``"grouped"``: groups of parameters by
                patterns (as of :mod:`fnmatch`; the first that fits counts), as in
                ``max_grad_norm={"embedding.*": 0.5, "*": 1.0}``. The noise is that of √ΣC_k².
            grad_sample_mode: ``"auto"``: one backward; ``"hooks"`` (or ``"ew"``): whole per-sample gradients are left
                in ``p.grad_sample``, ``(B, *p.shape)``, after each backward; ``"ghost"``: two passes, least memory;
                ``"functorch"``: the whole model under ``torch.vmap``, with a copy of its parameters for each sample.
            noise_generator: makes the noise reproducible, for tests.
            sample_index: the field of each batch (key, or place in a tuple) that says to which unit of privacy each row
                belongs, if the loader's collate_fn makes several rows of one item; see :meth:`samples`.
            check: ``(batch, loss_fn)``: look at model and loss before anything is touched; see :meth:`check`.
            ledger: a file (or a :class:`tacit.Ledger`) in which each release is written down before anyone sees it.
                What is in it already counts: epsilon is then that of all runs over this data set.
            memory_budget: how many bytes of per-sample gradients, and of what they are made from, a backward may hold
                until the clip. Where one pass would hold more, the backward runs twice and holds nothing. Without it,
                a quarter of the memory that is free is a limit to what is held for speed's sake only.
            tune: how strategies for matrix products are chosen: ``"predict"``, by rates of the device that are measured
                once and kept on disk; ``"measure"``, by timing them once for each shape. (Those for convolutions are
                always timed.) With ``torch.use_deterministic_algorithms(True)`` nothing is timed.
            fast_matmul: let oneDNN form float32 products instead of MKL, in the whole process and until ``detach()``. A
                probe decides: where it is not quicker, or not as accurate, there is a warning and nothing changes.
            grad_scaler: the ``torch.amp.GradScaler`` that scales the loss, for autocast in float16. Clipping undoes its
                scale. Until ``detach()`` the scale stays as it is (growth and backoff factors are set to 1), and no
                step is skipped: a record whose gradient overflows contributes nothing, and ``engine.stats.nonfinite``
                counts it. Choose ``init_scale`` (a power of two) as you choose ``max_grad_norm``.

        Returns:
            ``(model, optimizer, data_loader)``; with ``"ghost"`` also the criterion, fourth.

        Raises:
            ConfigurationError: an argument has no meaning here.
            PrivacyError: training this model, or on these batches, would not be covered by epsilon.
            DistributedError: processes that train together differ, or one of them was refused.
        """
        model = unwrapped(module)

        def prepare() -> tuple[PrivacyPlan, Settings, Parameters]:
            sampled = self._sampled(data_loader, sampling, poisson_sampling)
            private = self._check(model, optimizer, grad_sample_mode, criterion, memory_budget)
            names = _trainable(private)
            plan = PrivacyPlan(noise_multiplier, max_grad_norm, clipping, loss_reduction, sampled, names)
            generator = self._generator(noise_generator)
            check_scaler(grad_scaler, private)
            settings = Settings.of(
                grad_sample_mode, batch_first, generator, sample_index, memory_budget, tune, fast_matmul, grad_scaler
            )
            _check_first(model, check, plan.loss_reduction, settings, criterion)
            return plan, settings, private

        group = Group(_device_of(model))
        plan, settings, private = group.together(
            prepare, lambda found: self._facts(*found, data_loader, ledger=ledger is not None)
        )
        book = self._open(ledger, group)
        return self._attach(module, private, optimizer, data_loader, plan, criterion, settings, book, group)

    def make_private_with_epsilon(
        self,
        *,
        module: nn.Module,
        optimizer: Optimizer,
        data_loader: DataLoader[Any],
        target_epsilon: float,
        target_delta: float,
        max_grad_norm: Bounds,
        epochs: int | None = None,
        steps: int | None = None,
        criterion: Callable[..., Any] | None = None,
        batch_first: bool = True,
        loss_reduction: str = "mean",
        poisson_sampling: bool = True,
        sampling: str | Sampling | None = None,
        clipping: str = "flat",
        grad_sample_mode: str = "auto",
        noise_generator: torch.Generator | None = None,
        sample_index: str | int | None = None,
        check: tuple[Any, LossFunction] | None = None,
        ledger: str | Path | Ledger | None = None,
        memory_budget: int | None = None,
        tune: str = "predict",
        fast_matmul: bool = False,
        grad_scaler: GradScaler | None = None,
    ) -> tuple[Any, ...]:
        """Make training private with the least noise for which the planned run ends at or below ``target_epsilon``.

        What this engine has released before counts too.

        Args:
            target_epsilon: where the planned run may end, at ``target_delta``.
            target_delta: the δ of that (ε, δ).
            epochs: length of the planned run in passes over the loader; give this or ``steps``.
            steps: its length in optimizer steps.

        All other arguments, results and errors are those of :meth:`make_private`.
        """
        model = unwrapped(module)

        # Everything else is checked before the calibration, which takes a second.
        def prepare() -> tuple[PrivacyPlan, Settings, Parameters, int]:
            sampled = self._sampled(data_loader, sampling, poisson_sampling)
            private = self._check(model, optimizer, grad_sample_mode, criterion, memory_budget)
            draft = PrivacyPlan(1.0, max_grad_norm, clipping, loss_reduction, sampled, _trainable(private))
            generator = self._generator(noise_generator)
            check_scaler(grad_scaler, private)
            settings = Settings.of(
                grad_sample_mode, batch_first, generator, sample_index, memory_budget, tune, fast_matmul, grad_scaler
            )
            _check_first(model, check, loss_reduction, settings, criterion)
            return draft, settings, private, planned_steps(sampled, epochs, steps)

        group = Group(_device_of(model))
        target = (target_epsilon, target_delta)
        draft, settings, private, planned = group.together(
            prepare,
            lambda found: {
                **self._facts(*found[:3], data_loader, ledger=ledger is not None),
                "target": target,
                "planned steps": found[3],
            },
        )
        sampled = draft.sampling
        if 1.0 / sampled.units <= target_delta < 1.0:
            warnings.warn(
                f"target_delta={target_delta} with {sampled.units} records: with that chance a whole record may be "
                "revealed. Choose it well below one over the number of records.",
                UserWarning,
                stacklevel=2,
            )
        book = self._open(ledger, group)
        history = planned_history(self.accountant.history, sampled, planned)
        kind = self.accountant.mechanism(), self.accountant.wanted_adjacency
        noise = group.from_first(lambda: calibrate(history, *target, *kind))
        plan = replace(draft, noise_multiplier=noise)
        made = self._attach(module, private, optimizer, data_loader, plan, criterion, settings, book, group)
        self._attached.planned_steps = self.accountant.steps + planned
        return made

    @staticmethod
    def validate(
        *,
        module: nn.Module,
        optimizer: Optimizer | None = None,
        data_loader: DataLoader[Any] | None = None,
        strict: bool = False,
    ) -> list[Issue]:
        """List everything that make_private would refuse, at once, without running the model.

        Args:
            module: the model.
            optimizer: its optimizer, to look at that, too.
            data_loader: the loader, to look at that, too.
            strict: raise one error with all of it instead.

        Returns:
            The issues, each with the path of its module; empty if there are none.
        """
        issues = find_issues(unwrapped(module), optimizer)
        if data_loader is not None:
            issues += loader_issues(lambda: sampling_of(data_loader))
        if strict:
            raise_all(issues)
        return issues

    @classmethod
    def is_compatible(
        cls,
        *,
        module: nn.Module,
        optimizer: Optimizer | None = None,
        data_loader: DataLoader[Any] | None = None,
    ) -> bool:
        """Whether :meth:`validate` finds nothing."""
        return not cls.validate(module=module, optimizer=optimizer, data_loader=data_loader)

    @staticmethod
    def get_compatible_module(module: nn.Module, *, batch_norm: str = "group") -> Conversion:
        """Return ``(module, changes)``: a copy without batch normalization, and what was changed in it.

        Args:
            module: the model; it is left as it is. Attention and recurrent layers are kept: they need no replacement.
            batch_norm: ``"group"``, ``"frozen"`` (running statistics from public data) or ``"instance"``.
        """
        return compatible(module, batch_norm=batch_norm)

    def _sampled(self, data_loader: DataLoader[Any], sampling: str | Sampling | None, poisson: bool) -> Sampling:
        """How batches will be drawn: in a way that has a proof under the engine's adjacency."""
        found = sampling_of(data_loader, sampling=sampling, poisson=poisson)
        self.accountant.check_unit(found.unit)
        adjacency_of([*self.accountant.history, *found.planned(1.0, 1)], self.accountant.wanted_adjacency)
        return found

    def _check(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        mode: str,
        criterion: Callable[..., Any] | None,
        memory_budget: int | None,
    ) -> Parameters:
        """The parameters to be made private, if they may be."""
        if self._attachment is not None:
            raise ConfigurationError(
                "this engine has a private model already. Call engine.detach() first, or make another PrivacyEngine."
            )
        if criterion is not None and mode != "ghost":
            raise ConfigurationError(
                f'criterion= belongs to grad_sample_mode="ghost". In mode {mode!r} use your loss as it is, and leave '
                "it out here."
            )
        if isinstance(optimizer, PrivateOptimizer):
            raise ConfigurationError("the optimizer is private already. Pass the one it was made from.")
        private = check_attachable(module, optimizer)
        if any(is_spread(p) for p in private.values()):
            _check_sharded(mode, memory_budget)
        return private

    def _attach(
        self,
        module: nn.Module,
        parameters: Parameters,
        optimizer: Optimizer,
        data_loader: DataLoader[Any],
        plan: PrivacyPlan,
        criterion: Callable[..., Any] | None,
        settings: Settings,
        ledger: Book | None,
        group: Group,
    ) -> tuple[Any, ...]:
        model = unwrapped(module)
        if is_parted(data_loader) and group.rank == 0:
            warnings.warn(
                "the DistributedSampler is replaced: all processes draw one batch from the whole data set, and each "
                "takes its part of it. set_epoch() is not needed.",
                UserWarning,
                stacklevel=3,
            )
        attached = Attachment(model, parameters, optimizer, data_loader, plan, settings, self.accountant, ledger, group)
        self._attachment = attached
        try:
            if model is not module:
                attached.averaging.adopt(module)
            self._go_on_from_before()
        except (ConfigurationError, CheckpointError):
            self.detach()
            raise
        made = (module, attached.optimizer, attached.loader)
        return (*made, attached.criterion(criterion or nn.CrossEntropyLoss())) if settings.mode == "ghost" else made

    def detach(self) -> None:
        """Take privacy off: the model and the original optimizer are as they were. Spent budget stays on record."""
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    def _facts(
        self,
        plan: PrivacyPlan,
        settings: Settings,
        parameters: Parameters,
        data_loader: DataLoader[Any],
        *,
        ledger: bool,
    ) -> dict[str, object]:
        """What must be the same in all processes."""
        return {
            **plan_facts(plan),
            "grad_sample_mode": settings.mode,
            "batch_first": settings.batch_first,
            "sample_index": settings.sample_index,
            "reproducible noise": settings.noise_generator is not None,
            "scale of the loss": scale_of(settings.grad_scaler),
            "ledger": "given" if ledger else "none",
            **data_facts(data_loader.dataset),
            **run_facts(self.accountant, parameters),
        }

    def _open(self, ledger: str | Path | Ledger | None, group: Group) -> Book | None:
        """Open a ledger; the accountant then knows of all that is in it."""
        book = open_ledger(ledger, self.accountant, self._ledger, group)
        if book is not None:
            self._ledger = book.path.resolve()
        return book

    def _generator(self, given: torch.Generator | None) -> torch.Generator | None:
        """The generator that noise comes from, None for the cryptographic one."""
        return given if given is not None or self._secure_mode else torch.default_generator


def _trainable(parameters: Parameters) -> tuple[str, ...]:
    """Names of the private parameters that are trained from the first step on."""
    return tuple(name for name, p in parameters.items() if p.requires_grad)


def _check_sharded(mode: str, memory_budget: int | None) -> None:
    """Refuse what cannot be done with parameters that come and go."""
    if mode == "functorch":
        raise ConfigurationError(
            'grad_sample_mode="functorch" copies parameters for each sample, which is not supported with fully_shard. '
            'Use "auto" or "ghost".'
        )
    if memory_budget is not None:
        raise ConfigurationError(
            "with memory_budget= each process decides by itself how many passes it runs, and with fully_shard all must "
            'run as many. Use grad_sample_mode="ghost", which always runs two, or smaller physical batches '
            "(BatchMemoryManager)."
        )


def _device_of(model: nn.Module) -> torch.device | None:
    return next((p.device for p in model.parameters()), None)


def _check_first(
    module: nn.Module,
    check: tuple[Any, LossFunction] | None,
    loss_reduction: str,
    settings: Settings,
    criterion: Callable[..., Any] | None,
) -> None:
    if check is None:
        return
    batch, loss_fn = check
    check_model(
        module,
        loss_fn,
        batch,
        grad_sample_mode=settings.mode,
        loss_reduction=loss_reduction,
        batch_first=settings.batch_first,
        criterion=criterion,
    ).raise_if_bad()
