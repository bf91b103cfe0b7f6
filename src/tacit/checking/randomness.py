"""Switch randomness off: dropout passes everything, random tensors are constants.

Then the batch and its samples alone can be compared, whatever a model draws inside its forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tacit.rules.registry import methods

_DROPOUTS = frozenset(
    methods(
        "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout".split(), F, torch
    )
)
_LIKE = frozenset([torch.rand_like, torch.randn_like, torch.randint_like, torch.bernoulli])
_NEW = frozenset([torch.rand, torch.randn, torch.normal])
_IN_PLACE = frozenset(
    methods("normal_ uniform_ bernoulli_ exponential_ log_normal_ cauchy_ geometric_".split(), Tensor)
)
_VALUE = 0.3


class NoRandomness(TorchFunctionMode):
    """Makes the usual random functions of torch give fixed values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            value: Tensor = args[0] if args else kwargs["input"]
            return value.clone()
        if func is F.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            return func(*args, **kwargs | ({"dropout_p": 0.0} if len(args) <= 4 else {}))
        out = func(*args, **kwargs)
        if func in _LIKE or func in _NEW:
            return torch.full_like(out, _VALUE)
        if func in _IN_PLACE:
            return args[0].fill_(_VALUE)
        return out
