"""Is the clipped gradient right? Compare it with a plain loop over single samples, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tacit.capture.marks import map_tensors, tensors_in
from tacit.engine import PrivacyEngine

LossFunction = Callable[..., Tensor]
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}
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


@dataclass(frozen=True, slots=True)
class ExactnessReport:
    """How far the engine is from the loop.

    Attributes:
        norm_error: largest relative error of a per-sample norm.
        sum_error: relative l2 error of the clipped sum over all parameters.
        by_parameter: l2 error of each parameter's clipped sum, relative to the whole sum's norm.
        reference: what the loop found.
    """

    norm_error: float
    sum_error: float
    by_parameter: Mapping[str, float]
    reference: Reference


def single_sample_loop(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    *,
    max_grad_norm: float | None = None,
    batch_dim: int = 0,
    criterion: Callable[..., Any] | None = None,
) -> Reference:
    """Differentiate each sample alone, on a float64 copy of ``model``, and clip.

    Args:
        model: a plain model in train mode; it is copied. Dropout modules are switched off in the copy.
        loss_fn: ``loss_fn(model, batch)`` (with a third argument ``criterion`` if that is given) → scalar loss.
        batch: tensors, or nested containers of tensors, with the batch in ``batch_dim``.
        max_grad_norm: the bound; by default the median of the norms, so that half of the samples are clipped.
        batch_dim: the batch dimension of every tensor in ``batch``.
        criterion: handed on to ``loss_fn``.
    """
    model = _without_dropout(copy.deepcopy(model).double())
    extra = () if criterion is None else (criterion,)
    samples = next(tensors_in(batch)).shape[batch_dim]
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows: list[dict[str, Tensor]] = []
    for i in range(samples):
        one = map_tensors(lambda t, i=i: _double(t).narrow(batch_dim, i, 1), batch)  # type: ignore[misc]
        model.zero_grad()
        loss_fn(model, one, *extra).backward()
        rows.append({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in trainable.items()})
    norms = torch.stack([torch.stack([g.square().sum() for g in row.values()]).sum().sqrt() for row in rows])
    bound = float(norms.median()) if max_grad_norm is None else max_grad_norm
    bound = bound or 1.0
    sums = {
        name: sum(
            (row[name] * min(1.0, bound / max(float(n), 1e-300)) for row, n in zip(rows, norms, strict=True)),
            torch.zeros_like(p),
        )
        for name, p in trainable.items()
    }
    return Reference(norms, sums, bound)


def private_gradients(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    *,
    max_grad_norm: float,
    grad_sample_mode: str = "auto",
    loss_reduction: str = "mean",
    batch_first: bool = True,
    criterion: Callable[..., Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run one private backward on a copy of ``model``, without noise and without a release.

    Returns:
        Per-sample norms ``(B,)``, and the clipped sum by parameter name.
    """
    model = _without_dropout(copy.deepcopy(model))
    samples = next(tensors_in(batch)).shape[0 if batch_first else 1]
    loader = DataLoader(TensorDataset(torch.arange(max(samples, 1))), batch_size=max(samples, 1))
    engine = PrivacyEngine()
    ghost = grad_sample_mode == "ghost"
    made = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0),
        data_loader=loader,
        noise_multiplier=0.0,
        max_grad_norm=max_grad_norm,
        grad_sample_mode=grad_sample_mode,
        loss_reduction=loss_reduction,
        batch_first=batch_first,
        criterion=criterion if ghost else None,
    )
    extra = () if criterion is None else (made[3] if ghost else criterion,)
    loss_fn(model, batch, *extra).backward()
    stats = engine.stats
    norms = torch.zeros(0, dtype=torch.float64) if stats is None else stats.norms
    sums = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    engine.detach()
    return norms, sums


def check_exactness(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    *,
    max_grad_norm: float | None = None,
    grad_sample_mode: str = "auto",
    loss_reduction: str = "mean",
    batch_first: bool = True,
    criterion: Callable[..., Any] | None = None,
    tolerance: float | None = None,
) -> ExactnessReport:
    """Compare one private backward with a loop over single samples.

    Args:
        model: a plain model in train mode. It is left as it is.
        loss_fn: ``loss_fn(model, batch)`` → scalar, a ``loss_reduction`` over the batch. Given ``criterion``, it is
            called with it as third argument (in ghost mode with the wrapped one).
        batch: tensors, or nested containers of tensors, each with the batch in dimension 0 (1 if not ``batch_first``).
        max_grad_norm: the bound; by default the median norm.
        grad_sample_mode: as for ``make_private``.
        loss_reduction: ``"mean"`` or ``"sum"``.
        batch_first: as for ``make_private``.
        criterion: the loss, where ``loss_fn`` takes one.
        tolerance: largest relative error of norms and sum; by default 1e-9 in float64, 1e-5 in float32.

    Returns:
        The errors.

    Raises:
        AssertionError: an error is above the tolerance; names the parameters that differ most.
    """
    dim = 0 if batch_first else 1
    reference = single_sample_loop(
        model, loss_fn, batch, max_grad_norm=max_grad_norm, batch_dim=dim, criterion=criterion
    )
    norms, sums = private_gradients(
        model,
        loss_fn,
        batch,
        max_grad_norm=reference.max_grad_norm,
        grad_sample_mode=grad_sample_mode,
        loss_reduction=loss_reduction,
        batch_first=batch_first,
        criterion=criterion,
    )
    report = _compare(reference, norms, sums)
    precision = max((p.dtype for p in model.parameters()), key=lambda t: torch.finfo(t).eps)
    limit = TOLERANCES.get(precision, 2e-2) if tolerance is None else tolerance
    if not (report.norm_error <= limit and report.sum_error <= limit):
        worst = sorted(report.by_parameter.items(), key=lambda item: -item[1])[:5]
        raise AssertionError(
            f"private gradients differ from the loop over single samples: norms by {report.norm_error:.2e}, clipped "
            f"sum by {report.sum_error:.2e} (allowed {limit:.0e}); most in {worst}"
        )
    return report


def _compare(reference: Reference, norms: Tensor, sums: Mapping[str, Tensor]) -> ExactnessReport:
    if norms.shape != reference.norms.shape:
        raise AssertionError(f"the engine saw {len(norms)} samples, the batch has {len(reference.norms)}")
    scale = max(float(reference.norms.max()), 1e-300)
    norm_error = float(((norms - reference.norms).abs() / reference.norms.clamp(min=1e-12 * scale)).max())
    errors = {name: float((sums[name].double() - g).norm()) for name, g in reference.sums.items()}
    whole = max(float(torch.stack([g.norm() for g in reference.sums.values()]).norm()), 1e-300)
    total = float(torch.tensor(list(errors.values()), dtype=torch.float64).norm())
    by_parameter = {name: error / whole for name, error in errors.items()}
    return ExactnessReport(norm_error, total / whole, by_parameter, reference)


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, _DROPOUTS):
            module.eval()
    return model
