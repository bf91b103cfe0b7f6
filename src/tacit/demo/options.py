"""What the user may choose for the demo."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from tacit.accounting.checks import checked_count, checked_delta, checked_number
from tacit.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The planned run. Each of these alters it, so none may change between start and resume.

    Attributes:
        epsilon: target ε in nats, above 0.
        delta: the δ of that ε, strictly between 0 and 1.
        epochs: length of the run in passes over the training data, in expectation.
        batch_size: wanted batch size; the expected batch is records / ceil(records / batch_size).
        max_grad_norm: clipping bound on the l2 norm of one image's gradient, above 0.
        seed: of the initial weights, the split and the order of data without privacy. Noise and Poisson
            sampling never depend on it.

    Raises:
        ConfigurationError: a value is outside its range.
    """

    epsilon: float = 3.0
    delta: float = 1e-4
    epochs: int = 20
    batch_size: int = 240
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epsilon", "max_grad_norm"):
            value = getattr(self, name)
            if checked_number(name, value) <= 0.0:
                raise ConfigurationError(f"{name} is {value!r}: pass a number above 0.")
        checked_delta("delta", self.delta)
        checked_count("epochs", self.epochs)
        checked_count("batch_size", self.batch_size)
        checked_count("seed", self.seed, minimum=0)
        if self.seed >= 2**32:
            raise ConfigurationError(f"seed is {self.seed!r}: pass a number below 2**32.")

    def check_unchanged(self, given: Mapping[str, float]) -> None:
        """Refuse to resume with options that differ from those of the start.

        Args:
            given: the options that were given on resuming, by name.

        Raises:
            ConfigurationError: one differs.
        """
        saved = dataclasses.asdict(self)
        for name, value in given.items():
            if value != saved[name]:
                option = name.replace("_", "-")
                raise ConfigurationError(
                    f"--{option} is {value!r}, and the run to resume was planned with {saved[name]!r}: its budget "
                    f"holds for that plan only. Leave --{option} out, or start a new run in another --out."
                )
