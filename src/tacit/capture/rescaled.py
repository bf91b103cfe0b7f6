"""The gradient of a mean, in low precision: divided by a power of two instead of by the size of the batch.

One record more changes 1/B. Where gradients are rounded to bfloat16 or float16 after they were multiplied by it, the
gradients of *all* samples are then rounded otherwise: an added record moves the sum by the rounding errors of the
others, too (measured: 0.05 clipping bounds for 1,000 records in bfloat16), which no noise was made for. A power of two
changes no rounding (but of what is too small for float16: use a GradScaler). So where a forward computed in low
precision, what it puts out is returned in float32, and the gradient that comes back is multiplied by B / 2^⌈log₂ B⌉
before it is rounded for the first time; the clipping undoes 2^⌈log₂ B⌉ where it would have undone B.

Within the model gradients are up to twice as large as plain ones: hooks, and ``retain_grad()``, see them so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tacit.capture.marks import keep_mark, map_tensors, tensors_in
from tacit.capture.passes import Pass
from tacit.errors import PrivacyError
from tacit.rules.contact import autocasts

NARROW = frozenset([torch.bfloat16, torch.float16])
"""Types in which gradients are rounded by more than the noise pays for."""


_UNEVEN = (
    "the loss is a mean in low precision, and its gradients cannot be rescaled: an input of the model wants a "
    "gradient, or an earlier forward of this batch ran in float32. One record more then changes how the gradients of "
    "all others are rounded, by more than the noise pays for (in bfloat16, for 1,000 records, 0.05 clipping bounds "
    "were measured). Use a loss that is a sum, and loss_reduction='sum', or detach() the input."
)


class Rescaled(torch.autograd.Function):
    """Identity, in float32 at least, whose backward multiplies by a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.settings = factor, value.dtype
        return value.float() if value.dtype in NARROW else value.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        factor, dtype = ctx.settings
        return (g * factor).to(dtype), None


def is_narrow(run: Pass, parameters: Iterable[Tensor], out: Any) -> bool:
    """Whether a forward computed in low precision; of modules that run apart, where nobody looks, whether it may have.

    Args:
        run: its pass.
        parameters: the private ones.
        out: what it put out.
    """
    if not run.narrow:
        values = (*parameters, *tensors_in(out))
        run.narrow = autocasts(values[0].device) or any(value.dtype in NARROW for value in values)
    return run.narrow


def rescaled(out: Any, run: Pass, inputs: Sequence[Tensor]) -> Any:
    """Return a forward's output, whose gradients are those of a mean over ``run.averaged`` samples.

    All forwards of a pass do so, or none: the first decides. One with an input that wants a gradient does not, for that
    gradient is the user's.

    Raises:
        PrivacyError: gradients of several forwards would come at different scales.
    """
    wanted = any(value.requires_grad for value in inputs)
    if run.forwards == 0:
        run.rescaled = not wanted
    if run.rescaled and wanted:
        raise PrivacyError(
            "two forwards of one batch run in low precision, and an input of the second wants a gradient, which would "
            "come at another scale than the loss's. Let the forward whose input wants it be the first, detach() the "
            "input, or use losses that are sums, and loss_reduction='sum'."
        )
    if not run.rescaled:
        warnings.warn(_UNEVEN, UserWarning, stacklevel=6)
        return out
    factor = run.samples / run.averaged

    def behind(value: Tensor) -> Tensor:
        if not value.requires_grad or not value.is_floating_point():
            return value
        changed: Tensor = Rescaled.apply(value, factor)
        return keep_mark(value, changed)

    return map_tensors(behind, out)
