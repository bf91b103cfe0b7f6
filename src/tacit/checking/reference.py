"""What a plain loop over single samples finds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tacit.capture.marks import map_tensors, tensors_in

LossFunction = Callable[..., Tensor]
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a loop over single samples finds.

    Attributes:
        norms: ``(B,)``, float64: gradient norm of each sample.
        sums: clipped sum by parameter name, float64.
        max_grad_norm: the bound C that was used.
    """

    norms: Tensor
    sums: Mapping[str, Tensor]
    max_grad_norm: float


def single_sample_loop(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    *,
    max_grad_norm: float | None = None,
    batch_dim: int = 0,
    criterion: Callable[..., Any] | None = None,
    clipping: str = "flat",
) -> Reference:
    """Differentiate each sample alone, on a float64 copy of ``model``, and clip.

    Args:
        model: a plain model in train mode; it is copied. Dropout modules are switched off in the copy.
        loss_fn: ``loss_fn(model, batch)`` (with a third argument ``criterion`` if that is given) → scalar loss.
        batch: tensors, or nested containers of tensors, with the batch in ``batch_dim``.
        max_grad_norm: the bound; by default the median of the norms, so that half of the samples are clipped.
        batch_dim: the batch dimension of every tensor in ``batch``.
        criterion: handed on to ``loss_fn``.
        clipping: ``"flat"`` or ``"per_layer"``.
    """
    model = without_dropout(copy.deepcopy(model).double())
    extra = () if criterion is None else (criterion,)
    samples = tensors_in(batch)[0].shape[batch_dim]
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows: list[dict[str, Tensor]] = []
    for i in range(samples):
        one = map_tensors(lambda t, i=i: double(t).narrow(batch_dim, i, 1), batch)  # type: ignore[misc]
        model.zero_grad()
        loss_fn(model, one, *extra).backward()
        rows.append({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in trainable.items()})
    norms = torch.stack([_norm(row.values()) for row in rows])
    bound = float(norms.median()) if max_grad_norm is None else max_grad_norm
    bound = bound or 1.0
    sums = {name: torch.zeros_like(p) for name, p in trainable.items()}
    for group, each in _groups(trainable, bound, flat=clipping == "flat"):
        for row in rows:
            factor = min(1.0, each / max(float(_norm(row[name] for name in group)), 1e-300))
            for name in group:
                sums[name] += row[name] * factor
    return Reference(norms, sums, bound)


def _norm(gradients: Iterable[Tensor]) -> Tensor:
    return torch.stack([g.square().sum() for g in gradients]).sum().sqrt()


def _groups(names: Iterable[str], bound: float, *, flat: bool) -> list[tuple[list[str], float]]:
    """Which parameters are clipped together, and to what."""
    if flat:
        return [(list(names), bound)]
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return [(group, bound / len(layers) ** 0.5) for group in layers.values()]


def double(value: Tensor) -> Tensor:
    """Return a floating-point tensor in float64, others as they are."""
    return value.double() if value.is_floating_point() else value


def without_dropout(model: nn.Module) -> nn.Module:
    """Switch dropout modules off, in place."""
    for module in model.modules():
        if isinstance(module, _DROPOUTS):
            module.eval()
        elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            module.dropout = 0.0
    return model
