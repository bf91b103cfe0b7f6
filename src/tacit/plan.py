"""The plan: everything that decides epsilon, and nothing that decides speed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tacit.clipping import ClippingPolicy, create_policy
from tacit.errors import ConfigurationError
from tacit.sampling import Sampling

LOSS_REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True, slots=True)
class PrivacyPlan:
    """What was asked for, checked.

    Attributes:
        noise_multiplier: standard deviation of the noise, in units of the sensitivity.
        max_grad_norm: the clipping bound C, an l2 norm.
        clipping: name of the clipping policy.
        loss_reduction: ``"mean"`` or ``"sum"`` over the batch.
        sampling: how batches are drawn.

    Raises:
        ConfigurationError: a value is not a number of the right kind, or a name is not known.
    """

    noise_multiplier: float
    max_grad_norm: float
    clipping: str
    loss_reduction: str
    sampling: Sampling

    def __post_init__(self) -> None:
        check_number("noise_multiplier", self.noise_multiplier, zero=True)
        check_number("max_grad_norm", self.max_grad_norm, zero=False)
        if self.loss_reduction not in LOSS_REDUCTIONS:
            raise ConfigurationError(
                f"loss_reduction={self.loss_reduction!r}: say 'mean' or 'sum', as your loss reduces over the batch."
            )
        create_policy(self.clipping, self.max_grad_norm)

    @property
    def policy(self) -> ClippingPolicy:
        return create_policy(self.clipping, self.max_grad_norm)

    def divisor(self, draws: int) -> float:
        """What the noisy sum of ``draws`` drawn batches is divided by: a constant that no record moves."""
        return self.sampling.expected_batch_size * draws if self.loss_reduction == "mean" else 1.0


def check_number(name: str, value: object, *, zero: bool) -> None:
    """Raise ConfigurationError unless ``value`` is a finite positive number (or zero, if allowed)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"{name}={value!r} is a {type(value).__name__}, not a number.")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        least = "at least 0" if zero else "above 0"
        raise ConfigurationError(f"{name}={value!r}: it must be finite and {least}.")
