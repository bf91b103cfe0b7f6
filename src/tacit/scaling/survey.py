"""A dry run on the device "meta": every use of every parameter, by tacit's own capture, with nothing allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tacit.capture import ClippedSums, Pass, Session
from tacit.errors import ConfigurationError, TacitError
from tacit.scaling.activations import Activations, SavedTensors, repeated
from tacit.uses import TUNER, Use


@dataclass(frozen=True, slots=True)
class Survey:
    """What one forward and backward did, as shapes.

    Attributes:
        samples: B, of one process.
        parameters: shapes of the trained parameters, by name.
        frozen: shapes of the others.
        itemsize: bytes of a number in the forward.
        uses: every use with its parameter's name, in the order of the backward. Matrix products are there as their
            two factors, whatever form will be chosen.
        expected: bytes that uses of matrices will hold at least, as the forward announces them.
        activations: what autograd saves.
        blocks: name of the list of repeated blocks; empty if there is none.
        block_parameters: how many numbers the parameters of each block have.
    """

    samples: int
    parameters: Mapping[str, torch.Size]
    frozen: Mapping[str, torch.Size]
    itemsize: int
    uses: tuple[tuple[str, Use], ...]
    expected: int
    activations: Activations
    blocks: str
    block_parameters: tuple[int, ...]

    @property
    def trained(self) -> int:
        """How many numbers are trained."""
        return _numbers(self.parameters)

    @property
    def numbers(self) -> int:
        """How many numbers all parameters have."""
        return self.trained + _numbers(self.frozen)

    def in_blocks(self, name: str) -> bool:
        """Whether a parameter is in one of the repeated blocks."""
        return bool(self.blocks) and name.startswith(f"{self.blocks}.")


class _NoClip:
    """Uses are taken away before they come to a clip."""

    holds = True
    makes_sums_early = False

    def early(self, run: Pass) -> None:
        """Nothing is clipped."""

    def __call__(self, run: Pass, recorded: Mapping[str, list[Use]]) -> ClippedSums:
        raise NotImplementedError


def survey(model: nn.Module, loss: Callable[[SavedTensors], Tensor]) -> Survey:
    """Run a model on shapes alone.

    Args:
        model: a model whose parameters are on the device "meta", in train mode.
        loss: runs the forward and returns a loss. It is handed the counter of saved tensors, for kernels that are
            stood in for.

    Raises:
        TacitError: the model cannot be made private as it is; the words are those of training.
        ConfigurationError: its forward looks at values, which shapes do not have.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ConfigurationError("the model has no trainable parameters.")
    name, blocks = repeated(model)
    saved = SavedTensors(model, blocks)
    session = Session(model, trained, _NoClip(), batch_first=True, at_hand=lambda: None)
    try:
        run, uses = _run(session, saved, loss)
    finally:
        session.detach()
    return Survey(
        run.samples,
        {key: p.shape for key, p in trained.items()},
        {key: p.shape for key, p in model.named_parameters() if not p.requires_grad},
        next(iter(trained.values())).element_size(),
        tuple(uses),
        run.room.expected,
        saved.found(),
        name,
        tuple(sum(p.numel() for p in block.parameters()) for block in blocks),
    )


def _run(session: Session, saved: SavedTensors, loss: Callable[[SavedTensors], Tensor]) -> tuple[Pass, list[Any]]:
    uses: list[tuple[str, Use]] = []
    with TUNER.forced("gram", "pixels", "unfolded", "grouped"):  # the factors; forms are chosen afterwards
        try:
            with saved.counting():
                value = loss(saved)
            at_work = session.open_pass
            if at_work is None:
                raise ConfigurationError("the forward met no trainable parameter: nothing can be told of it.")
            run, carrier = at_work
            run.sink = lambda name, use: uses.append((name, use))
            # Down to the carrier: exactly the rules' backwards run, and nothing is clipped.
            torch.autograd.grad([value], [carrier], allow_unused=True)
        except TacitError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            cause = str(error).splitlines()[0][:120]
            raise ConfigurationError(
                f"the model cannot be planned from shapes alone, as its forward looks at values of tensors ({cause}). "
                "Experts that are chosen by values are such a case. Measure a small one instead: engine.explain()."
            ) from error
    return run, uses


def _numbers(shapes: Mapping[str, torch.Size]) -> int:
    return sum(shape.numel() for shape in shapes.values())
