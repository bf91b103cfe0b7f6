"""Checks of the numbers that privacy formulas are given."""

from __future__ import annotations

import math
from numbers import Real

from tacit.errors import ConfigurationError


def checked_number(name: str, value: object) -> float:
    """`value` as a finite float, or ConfigurationError naming it."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigurationError(f"{name} is {value!r}, which no privacy formula can use: pass a finite number.")
    return float(value)


def checked_count(name: str, value: object, minimum: int = 1) -> int:
    """`value` as an int of at least `minimum`, or ConfigurationError naming it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigurationError(f"{name} is {value!r}, but it counts something: pass an int of at least {minimum}.")
    return value


def checked_delta(name: str, value: object) -> float:
    """`value` as a float strictly between 0 and 1, or ConfigurationError naming it."""
    delta = checked_number(name, value)
    if not 0.0 < delta < 1.0:
        raise ConfigurationError(
            f"{name} is {value!r}, but it is a probability of failure: pass a number strictly between "
            "0 and 1, well below 1 / dataset size."
        )
    return delta


def checked_rate(value: object) -> float:
    """A probability of being drawn: a float in (0, 1], or ConfigurationError."""
    rate = checked_number("sample_rate", value)
    if not 0.0 < rate <= 1.0:
        raise ConfigurationError(
            f"sample_rate is {value!r}, but it is the probability of drawing a record: "
            "pass a number in (0, 1], usually expected batch size / dataset size."
        )
    return rate


def checked_noise(value: object) -> float:
    """A noise multiplier: a finite float of at least 0, or ConfigurationError."""
    noise = checked_number("noise_multiplier", value)
    if noise < 0.0:
        raise ConfigurationError(
            f"noise_multiplier is {value!r}, but it is a standard deviation divided by the "
            "sensitivity: pass a number of at least 0 (0 means no noise and no privacy)."
        )
    return noise
