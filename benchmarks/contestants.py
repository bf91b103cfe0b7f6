"""Who takes part: a plain SGD step, tacit's modes, Opacus's modes. All take the same steps on the same batch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from benchmarks.cases import Case
from tacit import PrivacyEngine

LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 1.0
NOISE_MULTIPLIER = 1.0


@dataclass
class Contestant:
    """One model in training.

    The loader has one batch, of all records: a Poisson rate of 1. So each draw is the same batch, whoever draws it,
    and is a draw that the private loader made and that the private optimizer accepts.
    """

    name: str
    model: nn.Module
    optimizer: Any
    loader: Any
    criterion: Callable[..., Any]
    device: str = "cpu"

    def draw(self) -> Any:
        inputs, labels = next(iter(self.loader))
        return inputs.to(self.device), labels.to(self.device)

    def step(self, batch: Any) -> None:
        inputs, labels = batch
        self.optimizer.zero_grad()
        loss = self.criterion(self.model(inputs), labels)
        loss.backward()
        self.optimizer.step()

    def rest(self) -> None:
        """Free gradients, so that those who wait for their turn take no memory from the one whose turn it is."""
        self.optimizer.zero_grad()
        for parameter in self.model.parameters():
            if getattr(parameter, "grad_sample", None) is not None:
                parameter.grad_sample = None  # type: ignore[attr-defined]


Make = Callable[[Case, float, dict[str, Any]], Contestant | None]
"""``(case, noise multiplier, overrides of the case's sizes) -> contestant``, or None if it cannot take part."""


def ingredients(case: Case, overrides: dict[str, Any], device: str) -> tuple[nn.Module, SGD, DataLoader[Any]]:
    model, data = case.make(**overrides)
    model = model.to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, SGD(trained, lr=LEARNING_RATE), DataLoader(data, batch_size=len(data))


def _plain(device: str) -> Make:
    def make(case: Case, _noise: float, overrides: dict[str, Any]) -> Contestant:
        return Contestant("plain", *ingredients(case, overrides, device), case.criterion, device)

    return make


def _private(name: str, engine: Any, mode: str, device: str) -> Make:
    """``engine`` is tacit's or Opacus's class: both have the same ``make_private``, but for the order of results."""

    def make(case: Case, noise: float, overrides: dict[str, Any]) -> Contestant:
        model, optimizer, loader = ingredients(case, overrides, device)
        # Opacus changes its default criterion in place: each gets a new one.
        criterion: Any = case.criterion if engine is PrivacyEngine else nn.CrossEntropyLoss()
        extra: dict[str, Any] = {"criterion": criterion} if mode == "ghost" else {}
        if mode == "per_layer":
            extra["clipping"] = mode
        model, optimizer, *rest = engine().make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=noise,
            max_grad_norm=MAX_GRAD_NORM,
            grad_sample_mode="auto" if mode == "per_layer" else mode,
            **extra,
        )
        # With "ghost", tacit returns the criterion last and Opacus returns it third.
        (loader,) = (each for each in rest if isinstance(each, DataLoader))
        (criterion,) = [each for each in rest if each is not loader] or [case.criterion]
        return Contestant(name, model, optimizer, loader, criterion, device)

    return make


MODES = ("auto", "ghost", "hooks")
BARE = "bare"
CHOICES = (*MODES, "per_layer", BARE)
"""``per_layer`` clips by layers, and so takes another step than the others; of the last see `benchmarks.bare`."""


def tacit_contestants(modes: Sequence[str] = MODES, device: str = "cpu") -> list[Make]:
    return [_private(f"tacit {mode}", PrivacyEngine, mode, device) for mode in modes]


def opacus_contestants(device: str = "cpu") -> list[Make] | None:
    """Opacus's modes, or None if it is not installed."""
    if importlib.util.find_spec("opacus") is None:
        return None
    with quiet():
        opacus = importlib.import_module("opacus")
    return [_if_it_can(_private(f"opacus {mode}", opacus.PrivacyEngine, mode, device)) for mode in ("hooks", "ghost")]


def _if_it_can(make: Make) -> Make:
    """A peer refuses some models, or fails in its first step: it then takes no part."""

    def tried(case: Case, noise: float, overrides: dict[str, Any]) -> Contestant | None:
        try:
            contestant = make(case, noise, overrides)
            assert contestant is not None
            contestant.step(contestant.draw())
        except Exception as error:  # noqa: BLE001  whatever it is, it is the peer's
            print(f"{case.name}: {type(error).__name__}: {str(error)[:150]}", file=sys.stderr)
            return None
        contestant.rest()
        return contestant

    return tried


def contestants(against: str | None, modes: Sequence[str] = MODES, device: str = "cpu") -> list[Make]:
    """Plain first, then tacit's modes, then the bare step if asked for, then the peer if one was named and is there."""
    peers = opacus_contestants(device) if against == "opacus" else []
    if peers is None:
        print("opacus is not installed: going on without it.")
        peers = []
    from benchmarks.bare import bare  # it needs what is above

    by_hand = [bare(device)] if BARE in modes else []
    own = tacit_contestants([mode for mode in modes if mode != BARE], device)
    return [_plain(device), *own, *by_hand, *peers]


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings: Opacus and the hooks that it uses give some at import, at attachment and at the first step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
