"""Ghost mode's two passes: norms first, holding nothing; then the backward of the reweighted sum of losses.

A backward is linear in each sample's loss, so the weights may be applied where each gradient is summed instead of to
the losses. That is done here: weights of 1e-6 underflow in half precision on their way down, and models that compute
in float32 inside (Llama's normalization) would round differently from the first pass.

The criterion's losses never enter the outer graph. It runs the two passes by itself, when autograd reaches the
carrier, so that any other term of the loss is seen apart, and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tacit.capture import Clip, ClippedSums, Deposit, EarlyClip, Pass, Term
from tacit.errors import PrivacyError, SecondBackwardError
from tacit.step import Clipper, Factors, Observer, by_unit
from tacit.uses import Asked, Fingerprint, FullPrecision, Use, any_differ, join


class GhostTerm(torch.autograd.Function):
    """The value of a loss whose gradient is left to the two passes."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, run: Pass, term: Term, weight: float, value: Tensor) -> Tensor:
        ctx.run, ctx.term, ctx.weight = run, term, weight
        return value.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, ...]:
        (losses,) = ctx.term.outputs
        ctx.run.deposit(ctx.term, (torch.full_like(losses, ctx.weight, requires_grad=False) * g,))
        return None, None, None, None, None


class GhostClipper:
    """Clips passes that have deposited terms by two passes, and all others as usual.

    Args:
        plain: says what factors are.
        usual: clips the others; by default ``plain``.
    """

    def __init__(self, plain: Clipper, usual: Clip | None = None) -> None:
        self._plain = plain
        self._usual = usual or plain

    @property
    def makes_sums_early(self) -> bool:
        return True

    @property
    def holds(self) -> bool:
        return self._usual.holds

    def early(self, run: Pass) -> EarlyClip | None:
        return self._usual.early(run)

    def __call__(self, run: Pass, recorded: Mapping[str, list[Use]]) -> ClippedSums:
        terms = run.take_terms()
        if not terms:
            return self._usual(run, recorded)
        if recorded or (run.early is not None and run.early.busy):
            raise SecondBackwardError(
                "the loss has another term beside what two passes are run over (the returned criterion's value; under "
                "a memory_budget the model's outputs): each sample would be clipped twice. Compute the whole loss with "
                "the returned criterion, or all of it without; let the model put out all that the loss depends on."
            )
        norms = _Norms(run, self._plain.observer)
        _backward(run, terms, norms.take, Asked.NORM)
        factors = self._plain.factors(run, norms.finish(), self._plain.scale(run))
        self._plain.observer.clipped(run, factors, {})
        sums = _Sums(run, factors, norms.seen)
        _backward(run, terms, sums.take, Asked.SUM)
        sums.check()
        return sums


def _backward(run: Pass, terms: list[Deposit], sink: Callable[[str, Use], None], asked: Asked) -> None:
    """Differentiate what waits down to the carrier: exactly the rules' backwards run."""
    pairs = [
        (value, gradient)
        for term, gradients in terms
        for value, gradient in zip(term.outputs, gradients, strict=True)
        if gradient is not None
    ]
    run.sink, run.room.asked = sink, asked
    try:
        torch.autograd.grad(
            [value for value, _ in pairs],
            [terms[0][0].carrier],
            grad_outputs=[gradient for _, gradient in pairs],
            retain_graph=asked is Asked.NORM,
            allow_unused=True,
        )
    finally:
        run.sink, run.room.asked = None, Asked.BOTH


class _Norms:
    """Squared norms per parameter; its uses are let go of as soon as the last one has come."""

    def __init__(self, run: Pass, observer: Observer) -> None:
        self._run = run
        self._observer = observer
        self._expected = dict(run.contacts)
        self._waiting: dict[str, list[Use]] = {}
        self._squares: dict[str, Tensor] = {}
        self.seen: dict[str, list[Fingerprint]] = {}

    def take(self, name: str, use: Use) -> None:
        if name in self._squares:
            raise PrivacyError(
                f"more gradients of {name!r} arrived than its forward announced, so its norm cannot be told. "
                'Use grad_sample_mode="auto" for this model.'
            )
        waiting = self._waiting.setdefault(name, [])
        waiting.append(use)
        if len(waiting) == self._expected.get(name, 0):
            self._close(name)

    def _close(self, name: str) -> None:
        waiting = self._waiting.pop(name)
        with FullPrecision(waiting[0].device):
            # Not before: what is written into the first use until the last one comes is in their norm, too.
            self.seen[name] = [Fingerprint(use) for use in waiting]
            use = join(by_unit(waiting, self._run))
            self._observer.used(name, use)
            self._squares[name] = use.squared_norms()

    def finish(self) -> dict[str, Tensor]:
        for name in list(self._waiting):
            self._close(name)
        return self._squares


class _Sums:
    """Clipped sums; a parameter's is formed, and its uses are let go of, as soon as the last one has come.

    The uses of one parameter may cancel: summed one by one, each over all samples, they would leave the rounding errors
    of totals that no factor has bounded. What is summed is what was normed: the uses, joined. They are held no longer
    than the first pass has held them.
    """

    def __init__(self, run: Pass, factors: Factors, seen: Mapping[str, list[Fingerprint]]) -> None:
        self._run = run
        self._seen = dict(seen)
        self._waiting: dict[str, list[Use]] = {}
        self._pairs: list[tuple[Fingerprint, Fingerprint]] = []
        self._most: list[Tensor] = []
        self._factors = factors
        self._dropped = None if bool(factors.finite.all()) else ~factors.finite
        self._totals: dict[str, Tensor] = {}

    def take(self, name: str, use: Use) -> None:
        if name not in self._seen:
            raise _differ(name)
        waiting = self._waiting.setdefault(name, [])
        waiting.append(use)
        if len(waiting) == len(self._seen[name]):
            self._close(name)

    def _close(self, name: str) -> None:
        waiting, expected = self._waiting.pop(name), self._seen.pop(name)
        self._most += [self._most_of(name)] * len(waiting)
        with FullPrecision(waiting[0].device):
            self._pairs += zip(expected, [Fingerprint(use) for use in waiting], strict=True)
            use = join(by_unit(waiting, self._run))
            if self._dropped is not None:
                use = use.without(self._dropped)
            total = use.weighted_sum(self._factors.by_name[name], self._factors.sensitivity)
        self._totals[name] = self._run.settle_early(name, total)

    def _most_of(self, name: str) -> Tensor:
        """How long each row's gradient may be at most that its factor lets through: ``(B,)``."""
        factors = self._factors.by_name[name]
        units = self._run.units
        return self._factors.sensitivity / (factors if units is None else factors[units.owner])

    def check(self) -> None:
        """Raise unless the second pass saw what the first one saw: its factors bound nothing else.

        Raises:
            PrivacyError: it did not.
        """
        missing = next(iter(self._seen), None)
        if missing is not None or (self._pairs and bool(any_differ(self._pairs, self._most))):
            raise _differ(missing or "some parameter")

    def sum(self, name: str) -> Tensor | None:
        return self._totals.pop(name, None)


def _differ(name: str) -> PrivacyError:
    return PrivacyError(
        f"the second of two passes over one forward saw other gradients of {name} than the first, whose norms bound "
        "them: a checkpoint that draws random numbers of its own (Python's, NumPy's, or preserve_rng_state=False), a "
        "hook that counts its calls, a backward that writes into the gradient it was given, or sums whose order "
        "is left to chance (atomics of a GPU: torch.use_deterministic_algorithms(True)). Leave that out, or use "
        'grad_sample_mode="auto" without a memory_budget, where one pass is run.'
    )
