"""What families of torch functions do to the batch dimension.

A follower says where the batch is in one output, seen from one operand that carries it; None if that cannot be said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tacit.capture.marks import mark_of
from tacit.rules.einsum import spell_out
from tacit.rules.registry import methods
from tacit.uses import Layout

NORMS = frozenset([*methods(["norm"], torch, Tensor, torch.linalg), torch.linalg.vector_norm])
"""Functions that take the order before the dimensions."""

Follower = Callable[[Callable[..., Any], Tensor, Layout, tuple[Any, ...], dict[str, Any], Tensor], Layout | None]
"""``(function, source, layout of source, args, kwargs, one output) -> layout of the output``."""


def reshape(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    return layout.reshaped(source.shape, out.shape)


@lru_cache(maxsize=4096)
def _permuted(function: Callable[..., Any], dims: int, args: tuple[Any, ...], kwargs: tuple[Any, ...]) -> torch.Size:
    probe = torch.empty(tuple(range(1, dims + 1)), device="meta")
    moved: Tensor = function(probe, *args, **dict(kwargs))
    return moved.shape


def permute(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, _out: Tensor) -> Layout | None:
    frozen = tuple(tuple(a) if isinstance(a, (list, tuple)) else a for a in args[1:])
    named = tuple((k, tuple(v) if isinstance(v, (list, tuple)) else v) for k, v in kwargs.items() if k != "input")
    sizes = _permuted(f, source.dim(), frozen, named)
    return layout.at(list(sizes).index(layout.dim + 1))


def right(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    """Broadcasting: dimensions are aligned from the last."""
    moved = layout.at(layout.dim + out.dim() - source.dim())
    return moved if moved.fits(out.shape) else None


def repeated(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    dim = layout.dim + out.dim() - source.dim()
    times, rest = divmod(out.shape[dim], layout.rows)
    return None if rest or not times else layout.repeated(times).at(dim)


def left(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """Dimensions are added behind those of the first operand."""
    return layout if source is first_operand(args, kwargs) and layout.fits(out.shape) else None


def constant(*_: Any) -> Layout | None:
    raise NotBatchError


def copied(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    """New tensors with the numbers of others."""
    return layout if source.shape == out.shape else None


class MixedRowsError(Exception):
    """What is read of one sample is chosen by others."""


class NotBatchError(Exception):
    """The output depends only on sizes and types of the batch, not on its values."""


def first_operand(args: Any, kwargs: Any) -> Any:
    return args[0] if args else kwargs.get("input")


def dim_argument(
    args: Any, kwargs: Any, position: int, default: Any = None, names: Sequence[str] = ("dim", "axis")
) -> Any:
    for name in names:
        if name in kwargs:
            return kwargs[name]
    return args[position] if len(args) > position else default


_VARIADIC = (Tensor.count_nonzero,)


def reduce(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    # norm(x, p, dim): everything else takes the dimension right behind the input.
    position = 2 if f in NORMS else 1
    if f in _VARIADIC and len(args) > position:
        args = (*args[:position], args[position:] if isinstance(args[position], int) else args[position])
    dims = dim_argument(args, kwargs, position)
    if isinstance(dims, Tensor):
        return right(f, source, layout, args, kwargs, out)
    if dims is None or isinstance(dims, (str, bool)):
        return None
    reduced = {d % source.dim() for d in ((dims,) if isinstance(dims, int) else dims)}
    if layout.dim in reduced or not reduced:
        return None
    if out.dim() == source.dim():
        return layout
    return layout.at(layout.dim - sum(d < layout.dim for d in reduced))


def unbind(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, _out: Tensor) -> Layout | None:
    dim = dim_argument(args, kwargs, 1, 0) % source.dim()
    return None if dim == layout.dim else layout.at(layout.dim - (dim < layout.dim))


def pieces(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """Chunks and splits: along the batch, whole copies of it stay readable (two views, concatenated)."""
    dim = dim_argument(args, kwargs, 2, 0) % source.dim()
    if dim != layout.dim:
        return layout
    sizes = args[1] if len(args) > 1 else None
    even = isinstance(sizes, int) and layout.outer > 1 and layout.owner is None
    times, rest = divmod(out.shape[dim], layout.samples * layout.inner)
    return Layout(layout.samples, dim, times, layout.inner) if even and not rest and times else None


def joined(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    dim = dim_argument(args, kwargs, 1, 0) % source.dim()
    if dim != layout.dim:
        return layout if layout.fits(out.shape) else None
    parts = []
    for part in dim_argument(args, kwargs, 0, (), ("tensors",)):
        mark = mark_of(part)
        if mark is None or mark.layout is None or mark.layout.dim != dim:
            return None
        parts.append(mark.layout)
    if any(part.owner is not None or part.inner != layout.inner for part in parts):
        joined = Layout.owned(layout.samples, dim, torch.cat([part.owners(out.device) for part in parts]))
    else:
        joined = Layout(layout.samples, dim, sum(part.outer for part in parts), layout.inner)
    return joined if joined.fits(out.shape) else None


def stack(_f: Any, _source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    dim = dim_argument(args, kwargs, 1, 0) % out.dim()
    return layout.at(layout.dim + (dim <= layout.dim))


def interleave(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, _out: Tensor) -> Layout | None:
    repeats, dim = dim_argument(args, kwargs, 1, None, ("repeats",)), dim_argument(args, kwargs, 2)
    if dim is None:
        return None
    if dim % source.dim() != layout.dim:
        return layout
    if not isinstance(repeats, int) or layout.owner is not None:
        times = repeats.detach().to(source.device) if isinstance(repeats, Tensor) else repeats
        owner = layout.owners(source.device).repeat_interleave(times)
        return Layout.owned(layout.samples, layout.dim, owner)
    return Layout(layout.samples, layout.dim, layout.outer, layout.inner * repeats)


def einsum(_f: Any, source: Tensor, layout: Layout, args: Any, _kwargs: Any, _out: Tensor) -> Layout | None:
    if not isinstance(args[0], str):
        return None
    operands = list(args[1] if isinstance(args[1], (list, tuple)) else args[1:])
    terms, result = spell_out(args[0], operands)
    letter = terms[[operand is source for operand in operands].index(True)][layout.dim]
    return layout.at(result.index(letter)) if result.count(letter) == 1 else None


def matmul(_f: Any, source: Tensor, layout: Layout, args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    other = args[1] if source is args[0] else args[0]
    lead = source.dim() - layout.dim
    if source.dim() == 1 or (source is args[0] and lead == 1) or (source is not args[0] and lead == 2):
        return None  # the contracted dimension
    if other.dim() == 1:
        return layout
    moved = layout.at(layout.dim + out.dim() - max(source.dim(), 2))
    return moved if moved.fits(out.shape) else None


def generic(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """Calls that combine operands position by position, or work on the last dimensions."""
    if out.dim() == source.dim():
        return layout if layout.fits(out.shape) else None
    operands = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if any(value.dim() == out.dim() for value in operands):
        return right(f, source, layout, args, kwargs, out)
    return None


def first_only(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """Calls whose weights must not come from the batch; leading dimensions of the first operand stay."""
    return (
        layout
        if source is first_operand(args, kwargs) and layout.dim < source.dim() - 1 and layout.fits(out.shape)
        else None
    )


def leading(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """Convolutions, pooling and normalization over (N, C, …): the batch must be dimension 0, and there."""
    first = first_operand(args, kwargs)
    space = f.__name__[-2:]
    least = int(space[0]) + 2 if space in ("1d", "2d", "3d") else 2
    return layout if source is first and layout.dim == 0 and source.dim() >= least and layout.fits(out.shape) else None


def padded(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """``F.pad``: from the last dimension on, two widths each."""
    widths = kwargs.get("pad", args[1] if len(args) > 1 else ())
    place = 2 * (source.dim() - 1 - layout.dim)
    return layout if not any(widths[place : place + 2]) and layout.fits(out.shape) else None


def attention(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """Attention over the second last dimension, which must not be the batch."""
    return right(f, source, layout, args, kwargs, out) if layout.dim < source.dim() - 2 else None


def trailing(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """Normalization over the last ``len(normalized_shape)`` dimensions."""
    shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    kept = source is first_operand(args, kwargs) and layout.dim < source.dim() - len(shape)
    return layout if kept and layout.fits(out.shape) else None


def along(position: int, default: int | None = None) -> Follower:
    """Calls that work along given dimensions, which must not be the batch's.

    Args:
        position: where the dimension stands among the arguments.
        default: the dimension if none is given; None if all dimensions are meant.
    """

    def follower(_f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
        chosen = dim_argument(args, kwargs, position, default, ("dim", "dims", "axis"))
        dims = [chosen] if isinstance(chosen, int) else chosen
        if position == 1 and all(isinstance(value, int) for value in args[1:]) and len(args) > 2:
            dims = args[1:]  # x.flip(0, 1)
        if not dims or layout.dim in {dim % source.dim() for dim in dims}:
            return None  # no dimensions are all of them
        return layout if out.dim() == source.dim() and layout.fits(out.shape) else None

    return follower


def lost(*_: Any) -> Layout | None:
    """Calls that cannot be followed."""
    return None


def distances(_f: Any, source: Tensor, layout: Layout, args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    """``cdist``: all rows of one against all rows of the other."""
    rows = source.dim() - (2 if source is not args[0] else 1)
    moved = layout.at(layout.dim + out.dim() - source.dim())
    return moved if layout.dim < rows and moved.fits(out.shape) else None


def added_product(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """``addmm`` and its kin: a summand that broadcasts, and a matrix product."""
    if source is args[0]:
        return right(f, source, layout, args, kwargs, out)
    return matmul(f, source, layout, args[1:], kwargs, out)


def compared(f: Any, source: Tensor, layout: Layout, args: Any, kwargs: Any, out: Tensor) -> Layout | None:
    """``cosine_similarity`` and ``pairwise_distance``: two tensors, broadcast, and one dimension summed away."""
    dims = max(value.dim() for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    moved = layout.at(layout.dim + dims - source.dim())
    default = 1 if f.__name__ == "cosine_similarity" else -1
    summed = dim_argument(args, kwargs, 2 if f.__name__ == "cosine_similarity" else 99, default) % dims
    if summed == moved.dim:
        return None
    return moved if out.dim() == dims else moved.at(moved.dim - (summed < moved.dim))


def folded(_f: Any, source: Tensor, layout: Layout, args: Any, _kwargs: Any, out: Tensor) -> Layout | None:
    """``F.unfold`` and ``F.fold``: the batch must be dimension 0."""
    return layout if source is args[0] and layout.dim == 0 and layout.fits(out.shape) else None


def without_last(_f: Any, source: Tensor, layout: Layout, _args: Any, _kwargs: Any, _out: Tensor) -> Layout | None:
    """``view_as_complex``: the last dimension goes."""
    return layout if layout.dim < source.dim() - 1 else None


def outer(_f: Any, source: Tensor, layout: Layout, args: Any, _kwargs: Any, _out: Tensor) -> Layout | None:
    """``outer(x, y)``: the rows are the first operand's."""
    return layout.at(0 if source is args[0] else 1)
