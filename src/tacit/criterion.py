"""The criterion that ghost mode returns: any loss, as per-sample losses behind a plain ``loss.backward()``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tacit.capture import Session, Term
from tacit.errors import ConfigurationError
from tacit.ghost import GhostTerm

REDUCTIONS = ("mean", "sum", "batchmean")


class PrivateCriterion(nn.Module):
    """Gives the value of the wrapped loss; its backward runs ghost mode's two passes.

    The loss of sample i is the wrapped loss of a batch that holds i alone, with one exception: a class-weighted mean
    is weighted, not normalized by the other samples' weights. The value is their mean (or sum). Where two passes
    cannot be run (evaluation, an input that wants a gradient, reentrant checkpointing, outputs flattened to one row a
    token) it is an ordinary loss, and the one-backward engine gives the same clipped gradient.

    Args:
        criterion: a loss module, with or without ``.reduction``, or a function returning a scalar for a batch.
            Tensor arguments whose first dimension is the batch size are read per sample; all others are
            passed as they are.
        session: the private model.
        reduction: what to do with the per-sample losses if the criterion does not say: "mean" or "sum".
    """

    def __init__(self, criterion: Callable[..., Any], session: Session, reduction: str) -> None:
        super().__init__()
        self.criterion = criterion
        self._session = session
        stated = getattr(criterion, "reduction", None)
        self._unreduced: Callable[..., Any] | None = None
        if stated in REDUCTIONS and isinstance(criterion, nn.Module):
            unreduced = copy.copy(criterion)
            setattr(unreduced, "reduction", "none")  # noqa: B010  a plain attribute, typed as a submodule
            self._unreduced = unreduced
        elif stated == "none":
            self._unreduced = criterion
        self.reduction = "sum" if stated == "sum" else "mean" if stated in ("mean", "batchmean") else reduction
        self._inside = "sum" if stated in ("sum", "batchmean") else "mean"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        losses = self.per_sample(*args, **kwargs)
        empty = losses.numel() == 0
        value = losses.mean() if self.reduction == "mean" and not empty else losses.sum()
        opened = self._session.open_pass
        if opened is None or not torch.is_grad_enabled() or not losses.requires_grad:
            return value
        run, carrier = opened
        # Of a sharded model all processes gather parameters for each pass: also one whose part of the batch is empty.
        stands_in = run.dummy and empty and self._session.sharded
        if run.plain_only or not (stands_in or (not run.dummy and run.samples == losses.shape[0])):
            return value
        if not self._session.guard.check_graph(losses, carrier):
            return value  # the two passes would see only what leads to the carrier
        weight = 1.0 / losses.shape[0] if self.reduction == "mean" and not empty else 1.0
        out: Tensor = GhostTerm.apply(carrier, run, Term((losses,), carrier), weight, value.detach())
        return out

    def per_sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss of each sample: shape ``(B,)``."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() > 0]
        if not tensors:
            raise ConfigurationError("the criterion was called without a tensor that has a batch dimension.")
        opened = self._session.open_pass
        samples = tensors[0].shape[0]
        at_hand = samples if opened is None or opened[0].dummy else opened[0].samples
        if any(t.shape[0] == at_hand for t in tensors):
            samples = at_hand
        if samples == 0:
            return tensors[0].flatten()[:0]
        args = _aligned(args)
        if self._unreduced is not None:
            losses = self._unreduced(*args, **kwargs)
            # More losses than inputs: shapes like (B, 1) and (B,) were broadcast against each other.
            fits = losses.dim() and losses.shape[0] in (samples, at_hand)
            if fits and losses.numel() <= max(t.numel() for t in tensors):
                return self._reduced(losses, args, kwargs)
        return self._one_by_one(samples, args, kwargs)

    def _reduced(self, losses: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        flat = losses.flatten(1) if losses.dim() > 1 else losses.unsqueeze(1)
        if self._inside == "sum":
            return flat.sum(1)
        if isinstance(self.criterion, (nn.CrossEntropyLoss, nn.NLLLoss)):
            target = kwargs.get("target", args[1] if len(args) > 1 else None)
            if isinstance(target, Tensor) and not target.is_floating_point():
                counted = (target != self.criterion.ignore_index).reshape(flat.shape)
                return flat.sum(1) / counted.sum(1).clamp(min=1)
        return flat.mean(1)

    def _one_by_one(self, samples: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Call the criterion on batches of one."""

        def mapped(value: Any) -> bool:
            return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == samples

        values = [*args, *kwargs.values()]
        batched = [value for value in values if mapped(value)]

        def single(*rows: Tensor) -> Tensor:
            left = iter(rows)
            call = [next(left).unsqueeze(0) if mapped(value) else value for value in values]
            names = dict(zip(kwargs, call[len(args) :], strict=True))
            loss: Tensor = self.criterion(*call[: len(args)], **names)
            return loss.sum() if self.reduction == "sum" else loss.mean()

        try:
            losses: Tensor = torch.vmap(single, randomness="different")(*batched)
        except RuntimeError:  # not every function can be vectorized: call it once per sample
            losses = torch.stack([single(*rows) for rows in zip(*batched, strict=True)])
        return losses


def _aligned(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give targets (B,) the shape of outputs (B, 1), or the other way round: broadcasting would pair all samples."""
    if len(args) < 2 or not all(isinstance(value, Tensor) and value.is_floating_point() for value in args[:2]):
        return args
    output, target = args[:2]
    if output.shape == target.shape or output.numel() != target.numel() or output.shape[0] != target.shape[0]:
        return args
    return output, target.reshape(output.shape), *args[2:]
