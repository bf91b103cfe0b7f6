"""Clipping policies: norms in, factors and a sensitivity out."""

from collections.abc import Mapping, Sequence

from tacit.clipping.base import ClippingPolicy
from tacit.clipping.flat import FlatClipping
from tacit.clipping.grouped import GroupedClipping, by_patterns, per_layer
from tacit.errors import ConfigurationError

__all__ = ["Bounds", "ClippingPolicy", "FlatClipping", "GroupedClipping", "create_policy"]

Bounds = float | Mapping[str, float]
"""One bound for all, or one for each group of parameters."""


def create_policy(clipping: str, max_grad_norm: Bounds, names: Sequence[str] = ()) -> ClippingPolicy:
    """Return the policy called ``clipping``.

    Args:
        clipping: ``"flat"``, ``"per_layer"`` or ``"grouped"``.
        max_grad_norm: the bound; for ``"grouped"`` one for each pattern of parameter names.
        names: the private parameters.

    Raises:
        ConfigurationError: there is no such policy, or the bounds are not of its kind.
    """
    several = isinstance(max_grad_norm, Mapping)
    if clipping not in ("flat", "per_layer", "grouped"):
        raise ConfigurationError(f"clipping={clipping!r} is not known. Known: 'flat', 'per_layer', 'grouped'.")
    if several != (clipping == "grouped"):
        wanted = (
            "one bound for each pattern of parameter names, such as {'embedding.*': 0.5, '*': 1.0}"
            if clipping == "grouped"
            else "one number. For bounds of your own for groups of parameters say clipping='grouped'"
        )
        raise ConfigurationError(f"max_grad_norm={max_grad_norm!r}: with clipping={clipping!r} it is {wanted}.")
    if isinstance(max_grad_norm, Mapping):
        return by_patterns(max_grad_norm, names)
    return FlatClipping(max_grad_norm) if clipping == "flat" else per_layer(max_grad_norm, names)
