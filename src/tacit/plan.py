"""The plan: everything that decides epsilon, and nothing that decides speed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tacit.clipping import Bounds, ClippingPolicy, create_policy
from tacit.errors import ConfigurationError
from tacit.sampling import Sampling

LOSS_REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True, slots=True)
class PrivacyPlan:
    """What was asked for, checked.

    Attributes:
        noise_multiplier: standard deviation of the noise, in units of the sensitivity.
        max_grad_norm: the clipping bound C, an l2 norm; for ``"grouped"`` one for each pattern of parameter names.
        clipping: name of the clipping policy.
        loss_reduction: ``"mean"`` or ``"sum"`` over the batch.
        sampling: how batches are drawn.
        parameters: names of the private parameters; policies with groups need them.
        policy: the clipping policy.

    Raises:
        ConfigurationError: a value is not a number of the right kind, or a name is not known.
    """

    noise_multiplier: float
    max_grad_norm: Bounds
    clipping: str
    loss_reduction: str
    sampling: Sampling
    parameters: tuple[str, ...] = ()
    policy: ClippingPolicy = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_number("noise_multiplier", self.noise_multiplier, zero=True)
        check_bounds(self.max_grad_norm)
        own = self.max_grad_norm  # a copy of plain numbers: nobody changes it, and it goes into checkpoints
        plain = {key: float(each) for key, each in own.items()} if isinstance(own, Mapping) else float(own)
        object.__setattr__(self, "max_grad_norm", plain)
        if self.loss_reduction not in LOSS_REDUCTIONS:
            raise ConfigurationError(
                f"loss_reduction={self.loss_reduction!r}: say 'mean' or 'sum', as your loss reduces over the batch."
            )
        object.__setattr__(self, "policy", create_policy(self.clipping, self.max_grad_norm, self.parameters))

    @property
    def facts(self) -> dict[str, object]:
        """What decides ε, by name: for whoever compares plans."""
        return {
            "noise_multiplier": self.noise_multiplier,
            "max_grad_norm": self.max_grad_norm,
            "clipping": self.clipping,
            "loss_reduction": self.loss_reduction,
            "sampling": self.sampling.description,
        }

    def divisor(self, draws: int) -> float:
        """What the noisy sum of ``draws`` drawn batches is divided by: a constant that no record moves."""
        return self.sampling.expected_batch_size * draws if self.loss_reduction == "mean" else 1.0


def check_bounds(value: object) -> None:
    """Raise ConfigurationError unless ``value`` is a bound, or a mapping from names to bounds."""
    if isinstance(value, Mapping):
        if not value or not all(isinstance(name, str) for name in value):
            raise ConfigurationError(
                f"max_grad_norm={value!r}: its keys are patterns of parameter names, at least one."
            )
        for name, each in value.items():
            check_number(f"max_grad_norm[{name!r}]", each, zero=False)
    else:
        check_number("max_grad_norm", value, zero=False)


def check_number(name: str, value: object, *, zero: bool) -> None:
    """Raise ConfigurationError unless ``value`` is a finite positive number (or zero, if allowed)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"{name}={value!r} is a {type(value).__name__}, not a number.")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        least = "at least 0" if zero else "above 0"
        raise ConfigurationError(f"{name}={value!r}: it must be finite and {least}.")
