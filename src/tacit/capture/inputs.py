"""What the arguments of an outermost forward say about the batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tacit.capture.crossings import crossing_of
from tacit.capture.derived import is_derived, unseen_error
from tacit.capture.marks import map_tensors, mark_of, tensors_in
from tacit.errors import ConfigurationError, LayoutError, MixingError, SamplingError


def size_of(value: Tensor, batch_dim: int) -> int | None:
    """The size of an input in the batch dimension; None for a scalar."""
    if value.dim() == 0:
        return None
    return value.shape[batch_dim if value.dim() > batch_dim else 0]


def batch_size(
    tensors: Sequence[Tensor], batch_dim: int, expected: int | None, constants: Collection[int]
) -> int | None:
    """Return the number of samples: that of the first input which is not known to be a constant.

    An input that has passed through the model before says it itself.

    Args:
        tensors: the inputs.
        batch_dim: the batch dimension.
        expected: the number of records at hand, if known.
        constants: places of inputs that are known to carry no batch.

    Returns:
        The number, or None if no input has a dimension.

    Raises:
        ConfigurationError: an input is a nested tensor, or the first has not as many rows as there are records, and
            others differ from it.
    """
    sizes = []
    for place, value in enumerate(tensors):
        if value.is_nested:
            raise ConfigurationError(
                "a NestedTensor has no batch dimension whose rows can be followed. Pass a padded tensor and a mask."
            )
        mark = mark_of(value)
        if mark is not None and mark.layout is not None:
            return mark.layout.samples
        size = size_of(value, batch_dim)
        if size is not None and place not in constants:
            sizes.append(size)
    if not sizes:
        return None
    if expected is not None and sizes[0] != expected and _with_offsets(tensors, expected):
        return expected
    others = {size for size in sizes if size != 1 or sizes[0] == 1}
    if expected is not None and sizes[0] != expected and len(others) > 1:
        raise ConfigurationError(
            f"the model's inputs have {sizes} rows, and {expected} records are at hand: which of them is the batch "
            "cannot be told. Pass the batch first, split it with BatchMemoryManager, and keep what is not of the "
            "batch (positions, masks) in the module as a buffer."
        )
    return sizes[0]


def _with_offsets(tensors: Sequence[Tensor], samples: int) -> bool:
    """Whether the inputs are a list of ids and the places in it where each sample's begin, as for nn.EmbeddingBag."""
    for ids, offsets in pairwise(tensors):
        if ids.dim() != 1 or offsets.dim() != 1 or len(offsets) != samples or not samples:
            continue
        if ids.is_floating_point() or offsets.is_floating_point():
            continue
        if int(offsets[0]) == 0 and int(offsets[-1]) <= len(ids) and bool((offsets[1:] >= offsets[:-1]).all()):
            return True
    return False


def refuse_mixed_outputs(outputs: Any, path: str) -> None:
    """Raise if an output pairs samples with each other.

    Raises:
        MixingError: names the call that did.
    """
    for value in tensors_in(outputs):
        mark = mark_of(value)
        if mark is not None and mark.mixed and value.requires_grad:
            raise MixingError(
                f"an output of {path} combines different samples of the batch (in `{mark.lost}`): a sample then moves "
                "the gradients of others, and clipping bounds nothing. If an input is no batch but only has its size "
                "(positions, a mask), store it in the module as a buffer. Leave out auxiliary losses over the whole "
                "batch (mixtures of experts: output_router_logits=False). A mean over as many rows as samples decide "
                "(a mask, lengths, weights) divides by those of all: take each sample's own mean and the mean of "
                "these, or the sum."
            )


def refuse_lost_outputs(outputs: Any, path: str) -> None:
    """Raise if an output does not show where its samples are: no rule looks at what comes behind the last parameter.

    A number for the whole batch, such as a loss, may be put out; a vector of them, such as a mean over the samples, may
    not, for outside it may be squared.

    Raises:
        LayoutError: names the call since which it does not.
    """
    for value in tensors_in(outputs):
        mark = mark_of(value)
        if mark is None or mark.layout is not None or not value.requires_grad or (mark.reduced and value.dim() == 0):
            continue
        raise LayoutError(
            f"an output {tuple(value.shape)} of {path} does not show any more, since `{mark.lost}`, which of its "
            "numbers belong to which sample: others may have a say in them, and then clipping bounds nothing. Keep the "
            "batch as one dimension, or detach() what is only logged."
        )


def refuse_unseen_outputs(outputs: Any, inputs: Any, path: str) -> None:
    """Raise if an output that wants a gradient was made by a call that was not seen: nobody knows what it combines.

    Outputs may be made of parameters alone, and inputs may be handed on.

    Raises:
        UnseenError: an output is neither.
    """
    unknown = [value for value in tensors_in(outputs) if value.requires_grad and mark_of(value) is None]
    if not unknown:
        return
    handed = {id(value) for value in tensors_in(inputs)}
    for value in unknown:
        if id(value) not in handed and crossing_of(value) is None and not is_derived(value):
            raise unseen_error(path)


def one_sample(inputs: Any, batch_dim: int) -> Any:
    """Put one made-up sample of zeros into every empty input.

    Models' own reshapes fail on empty tensors; the clipping gives this sample the factor 0.
    """

    def fill(value: Tensor) -> Tensor:
        if size_of(value, batch_dim) != 0:
            return value
        shape = list(value.shape)
        shape[batch_dim if value.dim() > batch_dim else 0] = 1
        return torch.zeros(shape, dtype=value.dtype, device=value.device, requires_grad=value.requires_grad)

    return map_tensors(fill, inputs)


def empty_outputs(outputs: Any) -> Any:
    """Take the made-up sample out of the outputs, so that they match the empty targets."""

    def cut(value: Tensor) -> Tensor:
        mark = mark_of(value)
        if mark is None or mark.layout is None:
            return value
        none = torch.empty(0, dtype=torch.int64, device=value.device)
        return value.index_select(mark.layout.dim, none)  # no view: fully_shard warns of those

    return map_tensors(cut, outputs)


def check_blank(inputs: list[Tensor], dim: int, padding: int) -> None:
    """Hold that the last ``padding`` rows of the inputs are the blank ones: all alike.

    Raises:
        SamplingError: they are not.
    """
    for value in inputs:
        tail = value.detach().movedim(dim if value.dim() > dim else 0, 0)[-padding:]
        if not torch.equal(torch.nan_to_num(tail[1:]), torch.nan_to_num(tail[:1].expand_as(tail[1:]))):
            raise SamplingError(
                f"the last {padding} rows of this batch should be blank ones, which pad it, but they differ from each "
                "other: rows were moved, or changed each by itself. Blank rows would count as records. Leave rows in "
                "their places and augment in the data set or in the model, or sample with padding=False."
            )
