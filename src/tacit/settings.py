"""What a user may ask for that does not decide epsilon."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.amp import GradScaler

from tacit.errors import ConfigurationError
from tacit.plan import check_number

MODES = {"auto": "auto", "hooks": "hooks", "ew": "hooks", "ghost": "ghost", "functorch": "functorch"}
TUNES = ("predict", "measure")


@dataclass(frozen=True, slots=True)
class Settings:
    """What does not decide epsilon.

    Attributes:
        mode: ``"auto"``, ``"hooks"``, ``"ghost"`` or ``"functorch"``.
        batch_first: whether inputs carry the batch in dimension 0.
        noise_generator: makes the noise reproducible.
        sample_index: where a batch says which unit of privacy each of its rows belongs to.
        memory_budget: bytes that may be held until the clip; None if nobody has said.
        tune: ``"predict"`` or ``"measure"``: how strategies are chosen.
        fast_matmul: let oneDNN form products in float32 where it is quicker and as accurate.
        grad_scaler: what scales the losses; None if nothing does.
    """

    mode: str
    batch_first: bool
    noise_generator: torch.Generator | None
    sample_index: str | int | None = None
    memory_budget: int | None = None
    tune: str = "predict"
    fast_matmul: bool = False
    grad_scaler: GradScaler | None = None

    @classmethod
    def of(
        cls,
        grad_sample_mode: str,
        batch_first: bool,
        noise_generator: torch.Generator | None,
        sample_index: str | int | None,
        memory_budget: int | None,
        tune: str,
        fast_matmul: bool,
        grad_scaler: GradScaler | None,
    ) -> Settings:
        """Check what was asked for, and return it.

        Raises:
            ConfigurationError: a value is not known, or does not go with another.
        """
        if grad_sample_mode not in MODES:
            raise ConfigurationError(
                f"grad_sample_mode={grad_sample_mode!r} is not known. Known: {', '.join(map(repr, MODES))}."
            )
        mode = MODES[grad_sample_mode]
        if tune not in TUNES:
            raise ConfigurationError(f"tune={tune!r}: say {' or '.join(map(repr, TUNES))}.")
        if not isinstance(fast_matmul, bool):
            raise ConfigurationError(f"fast_matmul={fast_matmul!r}: it is True or False.")
        if memory_budget is not None:
            check_number("memory_budget", memory_budget, zero=False)
            if mode != "auto":
                raise ConfigurationError(
                    "memory_budget= belongs to grad_sample_mode='auto', where it decides how many passes are run; "
                    f"{grad_sample_mode!r} does as its name says. Leave one of them out."
                )
        return cls(mode, batch_first, noise_generator, sample_index, memory_budget, tune, fast_matmul, grad_scaler)
