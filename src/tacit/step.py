"""The proof, in one place.

For one logical batch drawn by a sampler with a known accounting event:

1. ``clip``: each sample's gradient g_i over all private parameters is multiplied by a factor f_i that depends on
   g_i's norm alone, so that ‖f_i g_i‖ ≤ C, the policy's sensitivity. Samples that are not finite get the factor 0.
2. Sums of f_i g_i over the physical batches accumulate in ``.grad`` (for parameters narrower than float32 beside it,
   in float32); adding or removing one record changes the total by at most C. The leak guard holds that nothing else is
   in ``.grad``.
3. ``Releaser``: one event is recorded, then noise of standard deviation σ·C is added to every parameter, once, and
   the result is divided by a public constant. What the user's optimizer sees is the output of a Gaussian mechanism.

Several processes each clip their part of the batch (1), and DDP leaves the mean of their sums in every ``.grad`` (2).
It moves by C over their number, and gets noise of σ·C over their number: the same noise in each, from a key that all
know. So all release the same, once. Where ``fully_shard`` has spread the parameters, each ``.grad`` is a shard of the
sum itself, and gets σ·C from a key of that shard: all shards together are one sum with one noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from tacit.accounting import Release
from tacit.capture import Pass
from tacit.clipping import ClippingPolicy
from tacit.distributed import like, local
from tacit.errors import PrivacyError
from tacit.mechanisms import Move, NoiseSource, add_gaussian_noise
from tacit.plan import PrivacyPlan
from tacit.sampling import Draw, DrawLog
from tacit.uses import Dense, FullPrecision, Known, Norms, Together, Use, join, small

_SMALLEST = torch.finfo(torch.float32).tiny
"""Smaller factors are denormal in float32, and rounded by up to their own size."""


@dataclass(frozen=True, slots=True)
class Factors:
    """Step 1 for one physical batch of B samples.

    Attributes:
        norms: ``(B,)``, float64: each sample's gradient norm, before clipping.
        finite: ``(B,)``, bool: which samples have finite gradients; the others contribute nothing.
        by_name: for each parameter, ``(B,)``: what its per-sample gradients are multiplied by.
        sensitivity: the bound C that these factors keep.
        scaled: ``(B,)``, bool: which samples were scaled down anywhere.
    """

    norms: Tensor
    finite: Tensor
    by_name: Mapping[str, Tensor]
    sensitivity: float
    scaled: Tensor


def clipping_factors(
    names: Sequence[str],
    squares: Tensor,
    policy: ClippingPolicy,
    *,
    scale: Tensor | float,
    real: int,
) -> Factors:
    """Turn squared norms into factors.

    Args:
        names: the P parameters that were used.
        squares: ``(P, B)``: squared norms of recorded per-sample gradients.
        policy: the clipping policy.
        scale: what recorded gradients must be multiplied by to be those of single samples (undoes a mean); a number, or
            ``(B,)``.
        real: how many samples, the first ones, are no stand-ins: the others contribute nothing.
    """
    samples = squares.shape[1]
    if not names:
        zeros = squares.new_zeros(samples)
        return Factors(zeros, zeros == 0, {}, policy.sensitivity, zeros != 0)
    norms = squares.clamp(min=0).sqrt_().mul_(scale)
    total = torch.linalg.vector_norm(norms, dim=0)
    finite = torch.isfinite(total)
    factors = policy.factors(torch.where(finite, norms, 0.0), names)
    kept = finite if real >= samples else finite & (torch.arange(samples, device=finite.device) < real)
    if policy.uniform:
        scaled = factors[0] < 1
        by_name = dict.fromkeys(names, _exact(factors[0] * scale, kept))
    else:
        scaled = (factors < 1).any(0)
        by_name = dict(zip(names, _exact(factors * scale, kept).unbind(), strict=True))
    return Factors(total, finite, by_name, policy.sensitivity, scaled)


def _exact(factors: Tensor, kept: Tensor) -> Tensor:
    """Factors, and 0 for who contributes nothing: also where float32 would round a factor up by too much."""
    return torch.where(kept & (factors >= _SMALLEST), factors, 0.0)


class ClippedUses:
    """Clipped sums, formed one parameter at a time as the gates ask for them."""

    def __init__(self, uses: dict[str, Use], factors: Factors, known: Known, together: Together | None) -> None:
        self._uses = uses
        self._factors = factors
        self._known = known
        self._together = together
        self._sums: dict[str, Tensor] = {}
        self._full: FullPrecision | None = None

    def sum(self, name: str) -> Tensor | None:
        use = self._uses.pop(name, None)
        if use is None:
            return None
        known = self._sums.pop(name, None)
        if known is not None:
            return known
        factors, device = self._factors.by_name[name], use.device
        if self._full is None or self._full.device != device:
            self._full = FullPrecision(device)
        with self._full:
            if self._together is not None and name in self._together.names:
                self._sums = self._together.weighted_sums(factors)  # all have the same factors
                return self._sums.pop(name)
            return use.weighted_sum(factors, self._known.limit(name, self._factors.sensitivity))


class Observer(Protocol):
    """Is told what each backward clipped; the engine's statistics."""

    def used(self, name: str, use: Use) -> None:
        """These gradients are about to be normed."""

    def clipped(self, run: Pass, factors: Factors, uses: Mapping[str, Use]) -> None: ...


class Clipper:
    """Step 1: from the uses of one backward to clipped sums.

    Args:
        plan: returns the plan in force.
        observer: is told of every clipped batch.
        keep_dense: form and keep whole per-sample gradients (``grad_sample_mode="hooks"``).
        loss_scale: returns what the losses were multiplied by.
    """

    def __init__(
        self,
        plan: Callable[[], PrivacyPlan],
        observer: Observer,
        *,
        keep_dense: bool,
        loss_scale: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._plan = plan
        self._loss_scale = loss_scale
        self.observer = observer
        self._keep_dense = keep_dense

    @property
    def policy(self) -> ClippingPolicy:
        return self._plan().policy

    @property
    def makes_sums_early(self) -> bool:
        return False

    @property
    def holds(self) -> bool:
        return True

    def early(self, run: Pass) -> None:
        """Nothing is clipped before all uses have come."""

    def scale(self, run: Pass) -> Tensor | float:
        """What undoes a mean over the batch, and the scale of the loss.

        A loss that is the mean over B samples has per-sample gradients B times too small. With units it is the mean
        over R rows; that of a batch of unit u alone is the mean over its own n_u rows, so that its gradients are
        R / n_u times too small.
        """
        unscaled = 1.0 / self._loss_scale()
        if self._plan().loss_reduction != "mean":
            return unscaled
        rows = float(run.samples) if run.units is None else run.samples / run.units.sizes.double()
        return rows * unscaled

    def __call__(self, run: Pass, recorded: Mapping[str, list[Use]]) -> ClippedUses:
        scale = self.scale(run)
        with _in_full(recorded):
            uses = {name: join(by_unit(several, run)) for name, several in recorded.items()}
            if self._keep_dense:  # they are for the user's eyes: of the size of single samples' gradients
                uses = {name: Dense(_scaled(use, scale)) for name, use in uses.items()}
                scale = 1.0
            for name, use in uses.items():
                self.observer.used(name, use)
            uses, together = small(uses)
            factors, known = self.settled(run, Norms(uses, together), scale)
        if not known.finite:
            uses = {name: use.without(~factors.finite) for name, use in uses.items()}
            together = None
        self.observer.clipped(run, factors, uses)
        return ClippedUses(uses, factors, known, together if self.policy.uniform else None)

    def settled(
        self, run: Pass, norms: Norms, scale: Tensor | float, policy: ClippingPolicy | None = None
    ) -> tuple[Factors, Known]:
        """The factors of a clip, and what its sums have to know. To be called in full precision."""
        known = None
        while known is None:
            factors = self._factors(run, norms.names, norms.squares(), scale, policy)
            known = norms.known(factors.finite, factors.by_name, factors.sensitivity)
        return factors, known

    def factors(
        self,
        run: Pass,
        squares: Mapping[str, Tensor],
        scale: Tensor | float,
        policy: ClippingPolicy | None = None,
    ) -> Factors:
        stacked = [torch.stack(list(squares.values()))] if squares else []
        return self._factors(run, tuple(squares), stacked, scale, policy)

    def _factors(
        self,
        run: Pass,
        names: Sequence[str],
        squares: Sequence[Tensor],
        scale: Tensor | float,
        policy: ClippingPolicy | None = None,
    ) -> Factors:
        """The factors, from the squared norms ``(…, B)`` of parameters, in one or more parts."""
        if not squares:
            whole = torch.zeros((0, run.clipped_units), dtype=torch.float64)
        else:
            whole = squares[0] if len(squares) == 1 else torch.cat(list(squares))
        return clipping_factors(names, whole, policy or self.policy, scale=scale, real=run.real_units)


def _in_full(uses: Mapping[str, Sequence[Use]]) -> AbstractContextManager[None]:
    several = next(iter(uses.values()), ())
    return FullPrecision(several[0].device) if several else nullcontext()


def by_unit(uses: Sequence[Use], run: Pass) -> Sequence[Use]:
    """Sum the rows of each unit, before any norm is taken."""
    return uses if run.units is None else [use.grouped(run.units) for use in uses]


def _scaled(use: Use, scale: Tensor | float) -> Tensor:
    dense = use.dense()
    if isinstance(scale, Tensor):
        return dense * scale.to(dense.dtype).reshape(-1, *[1] * (dense.dim() - 1))
    return dense * scale if isinstance(use, Dense) else dense.mul_(scale)  # the others' was formed just now


def _move(parameter: Tensor, total: Tensor, rate: float | None) -> Move | None:
    """How a parameter is moved by the release of ``total``; None if that is left to the optimizer."""
    if rate is None or total.dtype != parameter.dtype or total.device != parameter.device:
        return None
    return Move(parameter.data.view(-1), rate)


class Gradients(Protocol):
    """Whoever watches ``.grad`` between backward and release."""

    @property
    def broken(self) -> bool: ...

    def check_untouched(self, gradients: Mapping[str, Tensor]) -> None: ...

    def check_whole(self, names: Iterable[str]) -> None: ...

    def take(self, name: str, parameter: Tensor) -> Tensor: ...

    def accept_all(self, gradients: Mapping[str, Tensor]) -> None: ...

    def drop(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Coming:
    """A release that is about to happen.

    Attributes:
        event: what the accountant is told.
        draws: the draws that it is of.
        std: standard deviation of the noise on the sum.
        divisor: what the noisy sum is divided by.
    """

    event: Release
    draws: tuple[Draw, ...]
    std: float
    divisor: float


Agree: TypeAlias = "Callable[[Callable[[], Coming]], Coming]"
"""Runs the preparation of a release; with several processes in all of them, and only if they agree."""


class Releaser:
    """Step 3: one event, one noise, one division, for one logical batch.

    Args:
        plan: returns the plan in force.
        parameters: the private parameters by name.
        gradients: the leak guard.
        draws: what the loader drew.
        noise: the noise source.
        record: writes the event down, and of how many draws it was.
        agree: prepares the release.
        processes: of how many processes ``.grad`` holds the mean.
    """

    def __init__(
        self,
        plan: Callable[[], PrivacyPlan],
        parameters: Mapping[str, nn.Parameter],
        gradients: Gradients,
        draws: DrawLog,
        noise: NoiseSource,
        record: Callable[[Release, int], None],
        agree: Agree,
        processes: int = 1,
    ) -> None:
        self._plan = plan
        self._parameters = parameters
        self._gradients = gradients
        self._draws = draws
        self._noise = noise
        self._record = record
        self._agree = agree
        self._processes = processes
        self._pending = 0.0
        self._paid = 0.0

    def clipped_to(self, sensitivity: float) -> None:
        """A physical batch was clipped to this bound; the noise covers the largest of a logical batch."""
        self._pending = max(self._pending, sensitivity)

    def pay(self, part: float) -> None:
        """Make the noise of this and all coming releases larger. Of some only, it would tell of their batches."""
        self._paid = max(self._paid, part)

    def awaited(self) -> bool:
        """Whether there is a sum that was not released."""
        return self._pending > 0

    def forget(self) -> None:
        """The pending sum was thrown away."""
        self._pending = 0.0

    def __call__(self, rates: Mapping[int, float]) -> Sequence[Tensor]:
        """Release the pending sum.

        Args:
            rates: by the ``id`` of parameters, what their releases may be subtracted from them with at once.

        Returns:
            The parameters that were moved so.

        Raises:
            PrivacyError: what is in ``.grad`` is not a clipped sum; nothing was released.
            SamplingError: no batch was drawn for this release; nothing was released.
        """
        trainable = {name: p for name, p in self._parameters.items() if p.requires_grad}
        coming = self._agree(lambda: self._prepared(trainable))
        for name in self._parameters.keys() - trainable.keys():
            self._parameters[name].grad = None  # frozen since its backward: what is there has no noise
            self._gradients.drop(name)
        self._record(coming.event, len(coming.draws))
        # The mean over n processes moves by an n-th of the sensitivity.
        std, divisor = coming.std / self._processes, coming.divisor / self._processes
        totals = [self._gradients.take(name, p) for name, p in trainable.items()]
        parts = [local(total) for total in totals]
        moves = [_move(p, part, rates.get(id(p))) for p, part in zip(trainable.values(), parts, strict=True)]
        moved = [p for p, move in zip(trainable.values(), moves, strict=True) if move is not None]
        # Autograd sees no writes of NumPy's. Before they happen: noise may fail half-way.
        torch.autograd.graph.increment_version(moved)
        released = add_gaussian_noise(
            parts,
            std=std,
            divisor=divisor,
            noise=self._noise,
            in_place=True,
            moves=moves,
            records=self._plan().sampling.expected_batch_size * len(coming.draws),
        )
        gradients: dict[str, Tensor] = {}
        for (name, parameter), total, part in zip(trainable.items(), totals, released, strict=True):
            parameter.grad = gradients[name] = like(total, part.to(parameter.dtype))
        self._gradients.accept_all(gradients)
        self._draws.released()
        self.forget()
        return moved

    def _prepared(self, trainable: Mapping[str, nn.Parameter]) -> Coming:
        plan = self._plan()
        self._check(trainable)
        draws = self._draws.take()
        event = plan.sampling.event(plan.noise_multiplier, draws)
        std = plan.noise_multiplier * (self._pending or plan.policy.sensitivity) * (1 + self._paid)
        return Coming(event, draws, std, plan.divisor(len(draws)))

    def _check(self, trainable: Mapping[str, nn.Parameter]) -> None:
        if self._gradients.broken:
            raise PrivacyError(
                "the last backward() failed, so what it left in .grad is not a clipped sum. Call "
                "optimizer.zero_grad() and run the batch again."
            )
        self._gradients.check_untouched({name: p.grad for name, p in trainable.items() if p.grad is not None})
        self._gradients.check_whole(trainable)
