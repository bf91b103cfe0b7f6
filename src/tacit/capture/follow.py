"""Follow the batch dimension through torch calls.

Each entry says what one family of functions does to a ``Layout``. What is not listed keeps the batch in the same
dimension if its size is still right there; otherwise the layout is *lost*, which is an error only if the tensor
then meets a parameter. Sizes are never searched for a dimension that looks like the batch: B = T = d happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.capture.indexing import follow_index, follow_narrow
from tacit.capture.marks import Mark, mark_of
from tacit.rules.registry import methods
from tacit.uses import Layout

Follower = Callable[[Callable[..., Any], Tensor, Layout, tuple[Any, ...], dict[str, Any], Tensor], Layout | None]
"""``(function, source, layout of source, args, kwargs, one output) -> layout of the output``."""


def _reshape(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    return layout.reshaped(source.shape, out.shape)


@lru_cache(maxsize=4096)
def _permuted(function: Callable[..., Any], dims: int, args: tuple[Any, ...], kwargs: tuple[Any, ...]) -> torch.Size:
    probe = torch.empty(tuple(range(1, dims + 1)), device="meta")
    moved: Tensor = function(probe, *args, **dict(kwargs))
    return moved.shape


def _permute(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, _out: Tensor) -> Layout | None:
    frozen = tuple(tuple(a) if isinstance(a, (list, tuple)) else a for a in args[1:])
    named = tuple((k, tuple(v) if isinstance(v, (list, tuple)) else v) for k, v in kwargs.items() if k != "input")
    sizes = _permuted(f, source.dim(), frozen, named)
    return layout.at(list(sizes).index(layout.dim + 1))


def _right(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    """Broadcasting: dimensions are aligned from the last."""
    moved = layout.at(layout.dim + out.dim() - source.dim())
    return moved if moved.fits(out.shape) else None


def _repeat(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    dim = layout.dim + out.dim() - source.dim()
    times, rest = divmod(out.shape[dim], layout.rows)
    return None if rest or not times else Layout(layout.samples, dim, layout.outer * times, layout.inner)


def _left(_f: Any, _source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    return layout if layout.fits(out.shape) else None


def _constant(*_: Any) -> Layout | None:
    raise NotBatchError


class NotBatchError(Exception):
    """The output depends only on sizes and types of the batch, not on its values."""


def _dim(args: Any, kwargs: Any, position: int, default: Any = None, names: Sequence[str] = ("dim", "axis")) -> Any:
    for name in names:
        if name in kwargs:
            return kwargs[name]
    return args[position] if len(args) > position else default


def _reduce(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    # norm(x, p, dim): everything else takes the dimension right behind the input.
    position = 2 if f in _NORMS else 1
    dims = _dim(args, kwargs, position)
    if isinstance(dims, Tensor):
        return _right(f, source, layout, args, kwargs, out)
    if dims is None or isinstance(dims, (str, bool)):
        return None
    reduced = {d % source.dim() for d in ((dims,) if isinstance(dims, int) else dims)}
    if layout.dim in reduced or not reduced:
        return None
    if out.dim() == source.dim():
        return layout
    return layout.at(layout.dim - sum(d < layout.dim for d in reduced))


def _unbind(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, _out: Tensor) -> Layout | None:
    dim = _dim(args, kwargs, 1, 0) % source.dim()
    return None if dim == layout.dim else layout.at(layout.dim - (dim < layout.dim))


def _pieces(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """Chunks and splits: along the batch, whole copies of it stay readable (two views, concatenated)."""
    dim = _dim(args, kwargs, 2, 0) % source.dim()
    if dim != layout.dim:
        return layout
    sizes = args[1] if len(args) > 1 else None
    even = isinstance(sizes, int) and layout.outer > 1
    times, rest = divmod(out.shape[dim], layout.samples * layout.inner)
    return Layout(layout.samples, dim, times, layout.inner) if even and not rest and times else None


def _joined(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    dim = _dim(args, kwargs, 1, 0) % source.dim()
    if dim != layout.dim:
        return _left(_f, source, layout, args, kwargs, out)
    total = 0
    for part in _dim(args, kwargs, 0, (), ("tensors",)):
        mark = mark_of(part)
        if mark is None or mark.layout is None or mark.layout.dim != dim or layout.inner != mark.layout.inner:
            return None
        total += mark.layout.outer
    joined = Layout(layout.samples, dim, total, layout.inner)
    return joined if joined.fits(out.shape) else None


def _stack(_f: Any, _source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    dim = _dim(args, kwargs, 1, 0) % out.dim()
    return layout.at(layout.dim + (dim <= layout.dim))


def _interleave(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, _out: Tensor) -> Layout | None:
    repeats, dim = _dim(args, kwargs, 1, None, ("repeats",)), _dim(args, kwargs, 2)
    if dim is None:
        return None
    if dim % source.dim() != layout.dim:
        return layout
    if not isinstance(repeats, int):
        return None
    return Layout(layout.samples, layout.dim, layout.outer, layout.inner * repeats)


def _einsum(_f: Any, source: Tensor, layout: Layout, args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    if not isinstance(args[0], str):
        return None
    operands = args[1] if isinstance(args[1], (list, tuple)) else args[1:]
    left, arrow, right = args[0].replace(" ", "").partition("->")
    terms = left.split(",")
    term = terms[[operand is source for operand in operands].index(True)]
    if "..." in left:
        term, right = term.replace("...", "." * (source.dim() - len(term) + 3)), right.replace("...", ".")
        right = right.replace(".", "." * (out.dim() - len(right) + 1))
        if layout.dim < len(term) and term[layout.dim] == ".":
            return layout if term.startswith(".") and right.startswith(".") else None
    if not arrow or layout.dim >= len(term):
        return None
    letter = term[layout.dim]
    return layout.at(right.index(letter)) if right.count(letter) == 1 else None


def _matmul(_f: Any, source: Tensor, layout: Layout, args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    other = args[1] if source is args[0] else args[0]
    lead = source.dim() - layout.dim
    if source.dim() == 1 or (source is args[0] and lead == 1) or (source is not args[0] and lead == 2):
        return None  # the contracted dimension
    if other.dim() == 1:
        return layout
    moved = layout.at(layout.dim + out.dim() - max(source.dim(), 2))
    return moved if moved.fits(out.shape) else None


_NORMS = frozenset(methods(["norm"], torch, Tensor))

_FAMILIES: list[tuple[Follower, str]] = [
    (_reshape, "view reshape view_as reshape_as flatten unflatten ravel squeeze unsqueeze squeeze_ unsqueeze_"),
    (_permute, "transpose swapaxes swapdims permute movedim moveaxis t adjoint transpose_ t_"),
    (_right, "expand expand_as broadcast_to"),
    (_repeat, "repeat tile"),
    (_constant, "new_zeros new_ones new_empty new_full new_tensor size numel dim stride"),
    (_reduce, "sum mean amax amin max min argmax argmin prod norm logsumexp std var any all median nansum nanmean"),
    (_unbind, "unbind"),
    (_pieces, "chunk split split_with_sizes tensor_split"),
    (_joined, "cat concat concatenate"),
    (_stack, "stack"),
    (_interleave, "repeat_interleave"),
    (_einsum, "einsum"),
    (_matmul, "matmul __matmul__ mm bmm mv"),
    (follow_narrow, "narrow select index_select"),
    (follow_index, "__getitem__"),
]
_FOLLOWERS: dict[Callable[..., Any], Follower] = {
    function: follower
    for follower, names in _FAMILIES
    for function in methods(names.split(), torch, Tensor, torch.linalg if "norm" in names else torch)
}
_FOLLOWERS.update({F.embedding: _left, F.one_hot: _left, torch.index_select: follow_narrow})
_FOLLOWERS[torch.linalg.norm] = _reduce
_FOLLOWERS[torch.linalg.vector_norm] = _reduce
_GETTERS: dict[Callable[..., Any], Callable[..., Any]] = {
    Tensor.T.__get__: Tensor.t,  # type: ignore[attr-defined]
    Tensor.mT.__get__: Tensor.adjoint,  # type: ignore[attr-defined]
    Tensor.H.__get__: Tensor.adjoint,  # type: ignore[attr-defined]
    Tensor.mH.__get__: Tensor.adjoint,  # type: ignore[attr-defined]
}


def _generic(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    if out.dim() > source.dim():
        return _right(f, source, layout, args, kwargs, out)
    return layout if out.dim() == source.dim() and layout.fits(out.shape) else None


def follow(
    function: Callable[..., Any], sources: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> Mark | None:
    """Return the mark of one output of a call.

    Args:
        function: what was called.
        sources: the marked inputs of the call, at least one.
        args: its arguments.
        kwargs: its keyword arguments.
        out: the output.

    Returns:
        The mark, or None if the output does not depend on the values of the batch.
    """
    source = max(sources, key=Tensor.dim) if len(sources) > 1 else sources[0]
    mark = mark_of(source)
    assert mark is not None
    if mark.layout is None:
        known = [s for s in sources if (m := mark_of(s)) is not None and m.layout is not None]
        if not known:
            return mark
        source = max(known, key=Tensor.dim)
        mark = mark_of(source)
        assert mark is not None
    assert mark.layout is not None
    follower = _FOLLOWERS.get(function, _generic)
    if function in _GETTERS:
        follower, function, args = _permute, _GETTERS[function], (source,)
        if function is Tensor.t and source.dim() != 2:
            function, args = torch.permute, (source, tuple(reversed(range(source.dim()))))
    try:
        layout = follower(function, source, mark.layout, args, kwargs, out)
    except NotBatchError:
        return None
    if layout is mark.layout:
        return mark
    if layout is None or not layout.fits(out.shape):
        return Mark(None, lost=getattr(function, "__name__", str(function)))
    return Mark(layout)
