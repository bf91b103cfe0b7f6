"""Why private gradients differ from the loop's: which module, or the loss, lets samples see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tacit.capture.marks import map_tensors, tensors_in
from tacit.checking.reference import LossFunction

TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: ``"layer"``, ``"loss"``, ``"batch_first"``, ``"loss_reduction"`` or ``"refused"``.
        path: the module, where there is one.
        message: what was found, why it matters, what to do.
    """

    kind: str
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Trace:
    """One run: what each module read and returned, in the order in which they finished, and the loss."""

    calls: Sequence[tuple[str, str, list[Tensor], list[Tensor]]]
    loss: Tensor


def trace(model: nn.Module, loss_fn: LossFunction, batch: Any, extra: Sequence[Any]) -> Trace:
    """Run the loss on a plain model and watch its modules."""
    calls: list[tuple[str, str, list[Tensor], list[Tensor]]] = []

    def watch(path: str, module: nn.Module) -> Any:
        def note(_m: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            read, made = tensors_in((args, kwargs)), tensors_in(out)
            calls.append((path, type(module).__name__, [t.detach().clone() for t in read], [t.detach() for t in made]))

        return module.register_forward_hook(note, with_kwargs=True)

    handles = [watch(name or "the model", module) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            loss = loss_fn(model, batch, *extra)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(calls, loss)


def one(batch: Any, b: int, dim: int) -> Any:
    """The batch of sample b alone."""
    return map_tensors(lambda value: value.narrow(dim if value.dim() > dim else 0, b, 1), batch)


def mixing_layer(whole: Trace, alone: Trace, b: int, samples: int) -> Finding | None:
    """Return the innermost module whose output for sample b changes with the others, though what it read does not."""
    if [call[0] for call in whole.calls] != [call[0] for call in alone.calls]:
        return None
    for (path, kind, read, made), (_, _, read_alone, made_alone) in zip(whole.calls, alone.calls, strict=True):
        if not _alike(read, read_alone, b, samples) or _alike(made, made_alone, b, samples):
            continue
        shapes = f"inputs {[tuple(t.shape) for t in read]}, outputs {[tuple(t.shape) for t in made]}"
        return Finding(
            "layer",
            path,
            f"{path} ({kind}; {shapes}) mixes samples: its output for one sample changes with the others of the batch. "
            "Then one record moves the gradients of others, and clipping bounds nothing. Replace it "
            "(engine.get_compatible_module does so for batch normalization), or move what combines samples out of it.",
        )
    return None


def _alike(whole: Sequence[Tensor], alone: Sequence[Tensor], b: int, samples: int) -> bool:
    return len(whole) == len(alone) and all(_row_alike(w, a, b, samples) for w, a in zip(whole, alone, strict=True))


def _row_alike(whole: Tensor, alone: Tensor, b: int, samples: int) -> bool:
    if whole.dim() != alone.dim():
        return False
    moved = [dim for dim in range(whole.dim()) if whole.shape[dim] != alone.shape[dim]]
    if not moved:
        return samples == 1 or whole.dim() == 0 or _close(whole, alone)
    if len(moved) != 1 or whole.shape[moved[0]] != samples * alone.shape[moved[0]]:
        return False
    dim, rows = moved[0], alone.shape[moved[0]]
    in_order = whole.narrow(dim, b * rows, rows)
    in_turn = whole.unflatten(dim, (rows, samples)).select(dim + 1, b)
    return _close(in_order, alone) or _close(in_turn, alone)


def _close(one_: Tensor, other: Tensor) -> bool:
    if not one_.is_floating_point():
        return torch.equal(one_, other)
    scale = float(other.abs().max()) if other.numel() else 0.0
    return torch.allclose(one_, other, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True)


def coupled_loss(whole: Tensor, alone: Sequence[Tensor], reduction: str) -> Finding | None:
    """Compare the loss of the batch with those of its samples."""
    parts = torch.stack([value.reshape(()) for value in alone])
    mean, total = parts.mean(), parts.sum()
    if _close(whole.reshape(()), mean if reduction == "mean" else total):
        return None
    other = "sum" if reduction == "mean" else "mean"
    if _close(whole.reshape(()), total if reduction == "mean" else mean):
        return Finding(
            "loss_reduction",
            "",
            f"the loss of the batch is the {other} of its samples' losses, and loss_reduction={reduction!r}: gradients "
            f"would be clipped at another size, and noise be too large or too small. Say loss_reduction={other!r}.",
        )
    return Finding(
        "loss",
        "",
        f"the loss mixes samples: for the batch it is {float(whole):.6g}, and its samples alone give a mean of "
        f"{float(mean):.6g} and a sum of {float(total):.6g}. Then one record moves the gradients of others, and "
        "clipping bounds nothing. Usual causes: a mean over tokens of samples of different lengths, class weights, an "
        "output (B, 1) against targets (B,), pairs within the batch. Compute the loss per sample (reduction='none'), "
        "then take the mean.",
    )
