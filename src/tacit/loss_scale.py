"""A GradScaler around private training in float16.

``scaler.scale(loss)`` multiplies every per-sample gradient by the scale. The clipping divides by it, as it undoes a
mean over the batch: norms, and the clipped sum in ``.grad``, are those of the plain loss. Whatever the scale is, a
clipped gradient measures C at most: the scale decides how much of small numbers float16 keeps, and nothing else.

``scaler.unscale_(optimizer)``, which ``scaler.step(optimizer)`` calls, divides ``.grad`` by the scale. That division
is undone at the step, exactly: the scale is a power of two.

A GradScaler that finds an infinite gradient skips the step and lowers its scale. Here a single record with a large
gradient could bring that about: whether weights moved, and which scale is in force from then on, would tell of it
without any noise. So neither happens. A sample that overflows contributes nothing, like any that is not finite; the sum
of the others is finite, and every step is released and on record. And the scale stays what it is: it is the user's to
choose, as the clipping bound is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.amp import GradScaler

from tacit.capture import LeakGuard
from tacit.errors import ConfigurationError

_LARGEST = 32
"""Scales are from 2⁻³² to 2³²: dividing by them loses nothing that counts."""


class LossScale:
    """What the losses are multiplied by, and what becomes of the division by it.

    Args:
        scaler: the user's; None, or one that is not enabled, for a scale of 1.
    """

    def __init__(self, scaler: GradScaler | None) -> None:
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._undone = False
        self._missing = False

    @property
    def value(self) -> float:
        """The scale in force.

        Raises:
            ConfigurationError: it is no power of two, or out of range.
        """
        return scale_of(self._scaler)

    def hold(self) -> None:
        """Keep the scale from following the data, also where a loaded state says that it should."""
        if self._scaler is not None:
            _HELD.setdefault(self._scaler, _Held(_factors(self._scaler))).by.add(self)
            self._scaler.set_growth_factor(1.0)
            self._scaler.set_backoff_factor(1.0)

    def undo(self, gradients: Mapping[str, Tensor], guard: LeakGuard) -> None:
        """Multiply gradients by the scale again, if ``unscale_`` has divided all of them by it."""
        scale = 1.0 if self._scaler is None else self._scaler.get_scale()
        if scale == 1.0 or not _exact(scale):  # which all processes find together, in check()
            return
        divided = guard.divided(gradients, scale)
        for name in divided:
            gradients[name].mul_(scale)
        for name in divided:  # behind all: in DDP's buckets they share one version
            guard.accept(name, gradients[name])
        # A step that was refused may be tried again: the scaler divides once.
        self._undone |= bool(divided)
        self._missing = not self._undone and bool(guard.divided(gradients, 1.0))

    def check(self) -> None:
        """Raise unless the step that is being made was made by the scaler, with a scale that can be undone.

        Raises:
            ConfigurationError: it was not. If the optimizer was stepped by itself, the loss, too, may not have been
                scaled.
        """
        scale_of(self._scaler)
        if self._missing:
            raise ConfigurationError(
                "make_private() was given grad_scaler=, and the optimizer was stepped without it: gradients are "
                "divided by its scale, also those of a loss that was not scaled. Call scaler.scale(loss).backward(), "
                "scaler.step(optimizer) and scaler.update(), or leave grad_scaler= out."
            )

    def forget(self) -> None:
        """The gradients at hand were released, or thrown away."""
        self._undone = self._missing = False

    def detach(self) -> None:
        """Let the scaler follow the data again, unless another run holds it, too."""
        held = None if self._scaler is None else _HELD.get(self._scaler)
        if self._scaler is None or held is None:
            return
        held.by.discard(self)
        if not held.by:
            self._scaler.set_growth_factor(held.factors[0])
            self._scaler.set_backoff_factor(held.factors[1])
            del _HELD[self._scaler]


@dataclass(frozen=True, slots=True)
class _Held:
    """A scaler whose scale is held.

    Attributes:
        factors: its growth and backoff factors, for when nobody holds it any more.
        by: who holds it. Who is gone without letting go does not count.
    """

    factors: tuple[float, float]
    by: WeakSet[LossScale] = field(default_factory=WeakSet)


_HELD: WeakKeyDictionary[GradScaler, _Held] = WeakKeyDictionary()
"""Several runs may share a scaler, as two networks that train each other do."""


def check_scaler(scaler: object, parameters: Mapping[str, Tensor]) -> None:
    """Refuse what is no GradScaler, or one that cannot work.

    Raises:
        ConfigurationError: it is.
    """
    if scaler is None:
        return
    if not isinstance(scaler, GradScaler):
        raise ConfigurationError(f"grad_scaler={scaler!r}: it is a torch.amp.GradScaler, or None.")
    half = [name for name, p in parameters.items() if p.dtype == torch.float16]
    if half and scaler.is_enabled():
        raise ConfigurationError(
            f"{half[0]!r} is float16, and a GradScaler does not unscale gradients in float16. Keep parameters in "
            "float32 and use torch.autocast(dtype=torch.float16), or parameters in bfloat16 without a GradScaler."
        )
    scale_of(scaler)


def scale_of(scaler: GradScaler | None) -> float:
    """The scale of a scaler: 1 for None, or if it is not enabled.

    Raises:
        ConfigurationError: it is no power of two, or out of range.
    """
    scale = 1.0 if scaler is None else scaler.get_scale()
    if not _exact(scale):
        raise ConfigurationError(
            f"the GradScaler's scale is {scale:g}: it must be a power of two from 2**-{_LARGEST} to 2**{_LARGEST}, so "
            "that dividing by it rounds nothing. Build it as GradScaler(device, init_scale=2.0**16)."
        )
    return scale


def _exact(scale: float) -> bool:
    return 2.0**-_LARGEST <= scale <= 2.0**_LARGEST and math.frexp(scale)[0] == 0.5


def _factors(scaler: GradScaler) -> tuple[float, float]:
    return scaler.get_growth_factor(), scaler.get_backoff_factor()
