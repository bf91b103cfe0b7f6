"""How far private gradients are from the loop's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tacit.checking.reference import Reference


@dataclass(frozen=True, slots=True)
class ExactnessReport:
    """How far the engine is from the loop.

    Attributes:
        norm_error: largest relative error of a per-sample norm.
        sum_error: l2 error of the clipped sum over all parameters, relative to its norm or, if it is larger, to that of
            the largest clipped sample.
        by_parameter: l2 error of each parameter's clipped sum, relative to the same.
        reference: what the loop found.
    """

    norm_error: float
    sum_error: float
    by_parameter: Mapping[str, float]
    reference: Reference


def compare(reference: Reference, norms: Tensor, sums: Mapping[str, Tensor]) -> ExactnessReport:
    """Return the errors of private norms and sums.

    Raises:
        AssertionError: the engine saw another number of samples than the loop.
    """
    if norms.shape != reference.norms.shape:
        raise AssertionError(f"the engine saw {len(norms)} samples, the batch has {len(reference.norms)}")
    scale = max(float(reference.norms.max()), 1e-300)
    norm_error = float(((norms - reference.norms).abs() / reference.norms.clamp(min=1e-12 * scale)).max())
    errors = {name: float((sums[name].double() - g).norm()) for name, g in reference.sums.items()}
    # The samples of a sum may cancel; it is then compared with the largest of them.
    largest = float(reference.norms.max().clamp(max=reference.max_grad_norm))
    whole = max(float(torch.stack([g.norm() for g in reference.sums.values()]).norm()), largest, 1e-300)
    total = float(torch.tensor(list(errors.values()), dtype=torch.float64).norm())
    by_parameter = {name: error / whole for name, error in errors.items()}
    return ExactnessReport(norm_error, total / whole, by_parameter, reference)
