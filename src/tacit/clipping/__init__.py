"""Clipping policies: norms in, factors and a sensitivity out."""

from tacit.clipping.base import ClippingPolicy
from tacit.clipping.flat import FlatClipping
from tacit.errors import ConfigurationError

__all__ = ["ClippingPolicy", "FlatClipping", "create_policy"]


def create_policy(clipping: str, max_grad_norm: float) -> ClippingPolicy:
    """Return the policy called ``clipping``.

    Raises:
        ConfigurationError: there is no such policy.
    """
    if clipping == "flat":
        return FlatClipping(max_grad_norm)
    raise ConfigurationError(f"clipping={clipping!r} is not known. Known: 'flat'.")
