"""Is the clipped gradient right? Compare it with a plain loop over single samples, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tacit.checking.compare import ExactnessReport, compare
from tacit.checking.private import private_gradients
from tacit.checking.reference import LossFunction, Reference, single_sample_loop
from tacit.errors import FallbackWarning

__all__ = [
    "ExactnessReport",
    "LossFunction",
    "Reference",
    "check_exactness",
    "check_rule",
    "private_gradients",
    "single_sample_loop",
]

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}


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
    clipping: str = "flat",
    memory_budget: int | None = None,
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
        clipping: ``"flat"`` or ``"per_layer"``.
        memory_budget: as for ``make_private``.

    Returns:
        The errors.

    Raises:
        AssertionError: an error is above the tolerance; names the parameters that differ most.
    """
    dim = 0 if batch_first else 1
    reference = single_sample_loop(
        model, loss_fn, batch, max_grad_norm=max_grad_norm, batch_dim=dim, criterion=criterion, clipping=clipping
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
        clipping=clipping,
        memory_budget=memory_budget,
    )
    report = compare(reference, norms, sums)
    precision = max((p.dtype for p in model.parameters() if p.is_floating_point()), key=lambda t: torch.finfo(t).eps)
    limit = TOLERANCES.get(precision, 2e-2) if tolerance is None else tolerance
    if not (report.norm_error <= limit and report.sum_error <= limit):
        worst = sorted(report.by_parameter.items(), key=lambda item: -item[1])[:5]
        raise AssertionError(
            f"private gradients differ from the loop over single samples: norms by {report.norm_error:.2e}, clipped "
            f"sum by {report.sum_error:.2e} (allowed {limit:.0e}); most in {worst}"
        )
    return report


class _Op(nn.Module):
    """A function of the batch and of parameters, as a module."""

    def __init__(self, function: Callable[..., Tensor], parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value.detach().clone()))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, **self._parameters)


def check_rule(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    parameters: Mapping[str, Tensor],
    *,
    modes: Sequence[str] = ("auto", "hooks", "ghost"),
    batch_first: bool = True,
    tolerance: float | None = None,
) -> list[ExactnessReport]:
    """Hold a rule to the loop over single samples, in float64 and in every mode.

    Try sizes that differ and sizes that coincide, a batch of one, and parameters that are views.

    Args:
        function: called as ``function(*inputs, **parameters)``; returns one tensor with the batch where the inputs have
            it.
        inputs: tensors with the batch in dimension 0 (1 if not ``batch_first``).
        parameters: what it trains, by the names under which it takes them.
        modes: the ``grad_sample_mode``s to try.
        batch_first: where the batch is.
        tolerance: as for :func:`check_exactness`.

    Returns:
        The errors, one report for each mode.

    Raises:
        AssertionError: gradients differ, or the function has no rule and runs apart.
    """
    model, dim = _Op(function, parameters).double(), 0 if batch_first else 1
    batch = tuple(value.double() if value.is_floating_point() else value for value in inputs)
    with torch.no_grad():
        weights = torch.rand_like(model(*batch)) + 0.5
    reports = []
    for mode in modes:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FallbackWarning)
            try:
                report = check_exactness(
                    model,
                    lambda m, b: (m(*b[:-1]) * b[-1]).square().transpose(0, dim).flatten(1).sum(1).mean(),
                    (*batch, weights),
                    grad_sample_mode=mode,
                    batch_first=batch_first,
                    tolerance=tolerance,
                )
            except FallbackWarning as missing:
                raise AssertionError(f"there is no rule: {missing}") from missing
        reports.append(report)
    return reports
