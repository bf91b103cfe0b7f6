"""One call of a module, taken apart: what each sample alone would see, and the module run on just that."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tacit.capture.entrance import Entrance
from tacit.capture.marks import map_tensors, tensors_in
from tacit.errors import MixingError
from tacit.uses import Layout

Values = Mapping[str, Tensor]


Watch = Callable[[], AbstractContextManager[None]]
"""Made around each run of a module apart: what it reads is looked at."""


class _Shim(nn.Module):
    """Calls a module's own forward, so that its hooks do not run a second time."""

    def __init__(self, entrance: Entrance, watch: Watch) -> None:
        super().__init__()
        self.module = entrance.module
        self._inner = entrance.inner
        self._watch = watch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._watch():
            return self._inner(*args, **kwargs)


class Call:
    """The arguments of one call, with the tensors that carry the batch replaceable by single samples' rows.

    Attributes:
        entrance: the module's entrance.
        layouts: for each tensor among the arguments, where its samples are; None for constants.
        samples: number of samples.
    """

    def __init__(
        self,
        entrance: Entrance,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        layouts: Sequence[Layout | None],
        watch: Watch,
    ) -> None:
        self.entrance = entrance
        self.layouts = list(layouts)
        self.samples = next(layout.samples for layout in layouts if layout is not None)
        self._arguments = args, kwargs
        self._tensors = tensors_in((args, kwargs))
        self._shim = _Shim(entrance, watch)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in order."""
        return self._tensors

    def rows(self) -> list[Tensor]:
        """Return the tensors that carry the batch, each ``(B, ...)``: its b-th entry is a batch of sample b alone."""
        pairs = zip(self._tensors, self.layouts, strict=True)
        return [_apart(value, layout) for value, layout in pairs if layout is not None]

    def whole(self) -> list[Tensor]:
        """Return the tensors that carry the batch, as they are."""
        return [value for value, layout in zip(self._tensors, self.layouts, strict=True) if layout is not None]

    def run(self, values: Values, constants: Mapping[int, Tensor], batched: Sequence[Tensor]) -> Any:
        """Call the module.

        Args:
            values: parameters and buffers to use, by the module's own names. Buffers that the module replaces are
                replaced in it.
            constants: tensors that stand in for those of the arguments that carry no batch, by their place.
            batched: tensors that stand in for those that do.
        """
        left = iter(batched)
        places = iter(range(len(self._tensors)))

        def fill(value: Tensor) -> Tensor:
            place = next(places)
            return constants.get(place, value.detach()) if self.layouts[place] is None else next(left)

        args, kwargs = map_tensors(fill, self._arguments)
        named = {f"module.{name}": value for name, value in values.items()}
        out = functional_call(self._shim, named, args, kwargs)
        if isinstance(values, dict):
            values.update({name: named[f"module.{name}"] for name in values})
        return out


def _apart(value: Tensor, layout: Layout) -> Tensor:
    """``(..., outer · B · inner, ...)`` → ``(B, ..., outer · inner, ...)``."""
    dim = layout.dim
    parts: Tensor = value.unflatten(dim, (layout.outer, layout.samples, layout.inner)).movedim(dim + 1, 0)
    return parts.flatten(dim + 1, dim + 2)


def embedding_apart(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, *rest: Any, **settings: Any
) -> Tensor:
    """``F.embedding`` whose padding gets no gradient under ``torch.vmap`` either, which forgets it (torch 2.13)."""
    out = F.embedding(input, weight, None, *rest, **settings)
    if padding_idx is None:
        return out
    padding = input == (padding_idx if padding_idx >= 0 else padding_idx + weight.shape[-2])
    return torch.where(padding.unsqueeze(-1), out.detach(), out)


LOOKUPS = frozenset([torch.embedding, torch.ops.aten.embedding, torch.ops.aten.embedding.default])
"""What ``F.embedding`` calls, with the table first."""


def as_functional(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    """The arguments of ``F.embedding`` that say what those of ``torch.embedding`` do, where -1 is no padding."""
    padding = padding_idx if padding_idx >= 0 else None
    return (indices, weight), {"padding_idx": padding, "scale_grad_by_freq": scale_grad_by_freq, "sparse": sparse}


def refuse_strides(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Refuse to read memory by strides under ``torch.vmap``, where the copies of a parameter are views of one.

    Its backward would take a sample's gradient for one of the memory, and divide it among all samples. Such a module
    runs in a loop.

    Raises:
        RuntimeError: as other calls do that cannot be vectorized.
    """
    if function.__name__.startswith("as_strided") and any(
        torch._C._functorch.is_batchedtensor(value) for value in args if isinstance(value, Tensor)
    ):
        raise RuntimeError(
            f"`{function.__name__}` on what differs from sample to sample cannot run under torch.vmap. Use view(), "
            "unfold() or an index instead."
        )


def together(parts: Tensor, dim: int, outer: int, inner: int) -> Tensor:
    """``(B, ..., outer · inner, ...)`` → ``(..., outer · B · inner, ...)``, in dimension ``dim`` of the result."""
    split: Tensor = parts.unflatten(dim + 1, (outer, inner)).movedim(0, dim + 1)
    return split.flatten(dim, dim + 2)


def vectorized(
    call: Call,
    copies: Values,
    inputs: Mapping[int, Tensor],
    fixed: Values,
    buffers: dict[str, Tensor],
    rows: Sequence[Tensor] | None = None,
) -> Any:
    """Run all samples at once under ``torch.vmap``.

    Args:
        call: the call.
        copies: parameters ``(B, *shape)``, one copy for each sample.
        inputs: the same for trainable tensors among the arguments, by their place.
        fixed: parameters that are constants.
        buffers: the module's buffers; those that it replaces are replaced here.
        rows: what to read instead of the call's own rows.

    Returns:
        The module's output in which every tensor is ``(B, *its shape for one sample)``.

    Raises:
        RuntimeError: the module cannot be vectorized.
        MixingError: it replaces a buffer by something computed from the batch.
    """
    seen: list[Any] = []

    def single(parameters: Values, extra: Mapping[int, Tensor], rows: list[Tensor]) -> tuple[Tensor, ...]:
        values = {**parameters, **fixed, **buffers}
        out = call.run(values, extra, rows)
        seen[:] = [out]
        for name in buffers:
            if torch._C._functorch.is_batchedtensor(values[name]):
                refuse_buffer(call, name)
            buffers[name] = values[name]
        return tuple(tensors_in(out))

    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "There is a performance drop because we have not yet implemented the batching"
        )
        stacked = torch.vmap(single, randomness="different")(
            dict(copies), dict(inputs), call.rows() if rows is None else list(rows)
        )
    left = iter(stacked)
    return map_tensors(lambda _: next(left), seen[0])


def one_by_one(
    call: Call, copies: Values, inputs: Mapping[int, Tensor], fixed: Values, buffers: dict[str, Tensor]
) -> Any:
    """The same as :func:`vectorized` in a plain loop over the samples, for what cannot be vectorized.

    Buffers start anew for each sample, and must end up alike: else something of the batch is in them.
    """
    parameters = {name: value.unbind(0) for name, value in copies.items()}
    extra = {place: value.unbind(0) for place, value in inputs.items()}
    rows = [value.unbind(0) for value in call.rows()]
    left: list[dict[str, Tensor]] = []
    written: set[str] = set()

    def single(parameters: Values, extra: Mapping[int, Tensor], own: Sequence[Tensor]) -> Any:
        held = {name: value.clone() for name, value in buffers.items()}
        values = {**parameters, **fixed, **held}
        out = call.run(values, extra, own)
        written.update(name for name, value in held.items() if values[name] is not value or value._version)
        left.append({name: values[name] for name in buffers})
        return out

    def of(b: int, values: Mapping[Any, Sequence[Tensor]]) -> dict[Any, Tensor]:
        return {name: value[b] for name, value in values.items()}

    outs = [single(of(b, parameters), of(b, extra), [row[b] for row in rows]) for b in range(call.samples)]
    if written:  # what all samples of this batch write alike may be of the batch all the same
        with left_alone(call.entrance.module, training=True):
            plain = [{name: value.detach() for name, value in of(0, own).items()} for own in (parameters, extra)]
            single(plain[0], plain[1], [torch.zeros_like(row[0]) for row in rows])
    for name in written:
        if any(not torch.equal(found[name], left[0][name]) for found in left):
            refuse_buffer(call, name)
        buffers[name] = left[0][name]
    columns = iter(zip(*(tensors_in(out) for out in outs), strict=True))
    return map_tensors(lambda _: torch.stack(next(columns)), outs[0])


def refuse_buffer(call: Call, name: str) -> None:
    raise MixingError(
        f"the forward of {call.entrance.path} writes something computed from the batch into the buffer `{name}`, which "
        "is saved with the model without noise. Freeze the update, or keep the value outside the model."
    )


@contextmanager
def left_alone(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Run a module for its values only: no gradients, random numbers put back, in train or eval mode for a while."""
    modes = [(m, m.training) for m in module.modules()]
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    try:
        if not training:
            for m, _ in modes:
                m.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=list(devices)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run that counts will say it again
            yield
    finally:
        for m, mode in modes:
            m.training = mode
