"""Follow the batch dimension through torch calls.

A tensor of the batch carries a ``Layout``. Each call is looked up in a table of families; what is pointwise keeps the
batch where it is. Operands that disagree, and all other calls, make the layout *lost*, which is an error only if the
tensor then meets a parameter. Sizes are never searched for a dimension that looks like the batch: B = T = d happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.capture import families, routed, rowwise
from tacit.capture.families import Follower, MixedRowsError, NotBatchError
from tacit.capture.indexing import follow_index, follow_narrow
from tacit.capture.loss_rows import FOLLOWERS as LOSS_FOLLOWERS
from tacit.capture.loss_rows import LOSSES, averages, unreduced
from tacit.capture.marks import Mark, mark_of, set_mark, tensors_in
from tacit.capture.pointwise import POINTWISE
from tacit.capture.reductions import divides_by_choice, follow_reduced, sums, uneven
from tacit.rules.registry import methods
from tacit.uses import Layout

_OWNERS = (torch, Tensor, F, torch.special)

_FAMILIES: list[tuple[Follower, str]] = [
    (families.reshape, "view reshape view_as reshape_as flatten unflatten ravel squeeze unsqueeze squeeze_ unsqueeze_"),
    (families.permute, "transpose swapaxes swapdims permute movedim moveaxis t adjoint transpose_ t_"),
    (families.right, "expand expand_as broadcast_to"),
    (families.repeated, "repeat tile"),
    (families.constant, "new_zeros new_ones new_empty size numel dim stride"),
    (families.copied, "new new_full new_tensor"),
    (
        families.reduce,
        "sum mean amax amin max min argmax argmin prod norm logsumexp std var any all median nansum nanmean "
        "nanmedian count_nonzero aminmax std_mean var_mean",
    ),
    (families.unbind, "unbind"),
    (families.pieces, "chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split unsafe_split_with_sizes"),
    (families.joined, "cat concat concatenate"),
    (families.stack, "stack"),
    (families.interleave, "repeat_interleave"),
    (families.einsum, "einsum"),
    (families.matmul, "matmul __matmul__ mm bmm mv"),
    (families.added_product, "addmm baddbmm addmv addmm_ baddbmm_"),
    (families.distances, "cdist"),
    (follow_narrow, "narrow select index_select"),
    (routed.packed, "_pack_padded_sequence"),
    (routed.unpacked, "_pad_packed_sequence"),
    (routed.index_add, "index_add index_add_ index_copy index_copy_"),
    (follow_index, "__getitem__"),
    (families.left, "embedding one_hot view_as_real"),
    (families.without_last, "view_as_complex"),
    (families.outer, "outer ger"),
    (families.first_only, "linear bilinear grouped_mm _grouped_mm"),
    (
        families.leading,
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm instance_norm group_norm "
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool1d lp_pool2d "
        "interpolate upsample grid_sample affine_grid pixel_shuffle pixel_unshuffle local_response_norm "
        "channel_shuffle native_group_norm "
        "native_channel_shuffle lp_pool3d max_unpool1d max_unpool2d max_unpool3d fractional_max_pool2d "
        "fractional_max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
        "adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices "
        "fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices",
    ),
    (families.trailing, "layer_norm rms_norm native_layer_norm"),
    (families.padded, "pad constant_pad_nd"),
    (
        rowwise.within(2),
        "inverse pinverse matrix_exp matrix_power cholesky cholesky_inverse det logdet slogdet qr svd lu "
        "tril triu tril_ triu_",
    ),
    (rowwise.within(1), "multinomial _sample_dirichlet"),
    (rowwise.cells, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    (families.attention, "scaled_dot_product_attention"),
    (families.along(1), "softmax log_softmax softmin cumsum cumprod cummax cummin logcumsumexp flip glu gather"),
    (routed.ordered, "sort argsort"),
    (families.along(2, -1), "diff"),
    (routed.places, "nonzero where argwhere"),
    (families.along(2), "roll"),
    (families.along(2, 1), "normalize"),
    (families.along(2, -1), "topk kthvalue"),
    (families.along(1), "scatter scatter_add scatter_reduce index_fill scatter_ scatter_add_"),
    (families.along(1), "scatter_reduce_ index_fill_ cumsum_ cumprod_"),
    (families.along(2), "take_along_dim"),
    (families.along(4, -1), "gumbel_softmax"),
    (
        families.lost,
        "multi_head_attention_forward "
        "msort vander addbmm tensordot take put put_ index_put index_put_ masked_scatter masked_scatter_ "
        "rot90 diag diag_embed diagflat kron cross unfold fold "
        "atleast_1d atleast_2d atleast_3d dstack hstack vstack row_stack column_stack cov corrcoef cartesian_prod "
        "combinations meshgrid block_diag unique masked_select bincount histc renorm renorm_ "
        "fliplr flipud chain_matmul cumulative_trapezoid trapezoid as_strided as_strided_ resize_ set_ sspaddmm "
        "pdist searchsorted bucketize mode quantile",
    ),
]


def _table() -> dict[Callable[..., Any], Follower]:
    table = {f: follower for follower, names in _FAMILIES for f in methods(names.split(), *_OWNERS)}
    table.update(dict.fromkeys(families.NORMS, families.reduce))
    transforms = methods("fft ifft rfft irfft hfft ihfft".split(), torch.fft)
    several = methods("fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn fftshift ifftshift".split(), torch.fft)
    table.update(dict.fromkeys(transforms, families.along(2, -1)) | dict.fromkeys(several, families.lost))
    linear_algebra = [f for name in dir(torch.linalg) if callable(f := getattr(torch.linalg, name))]
    table |= {f: families.lost for f in linear_algebra if f not in table}
    table[torch.linalg.matmul] = families.matmul
    # One row per sample, compared along the last or first dimension: read as a reduction.
    table[F.cosine_similarity] = table[torch.cosine_similarity] = families.compared
    table[F.pairwise_distance] = table[torch.pairwise_distance] = families.compared
    table[F.unfold] = table[F.fold] = families.folded
    table[F.embedding_bag] = rowwise.bags
    table |= LOSS_FOLLOWERS
    return table


_FOLLOWERS = _table()
_KEEP_POINTERS = frozenset(
    methods(
        "view reshape flatten squeeze unsqueeze contiguous clone detach to long int argsort floor_divide __floordiv__ "
        "__getitem__ unbind".split(),
        *_OWNERS,
    )
)
_NEW = frozenset([Tensor.new, Tensor.new_full, Tensor.new_tensor])
_BY_LENGTHS = frozenset([torch._pack_padded_sequence, torch._pad_packed_sequence])
_BY_NUMBER = frozenset(methods("index_add index_add_ index_copy index_copy_ index_select".split(), *_OWNERS))
_SELECTIVE = _NEW | _BY_LENGTHS | _BY_NUMBER | {Tensor.__getitem__}
VIEW_GETTERS: dict[Callable[..., Any], Callable[..., Any]] = {
    Tensor.T.__get__: Tensor.t,  # type: ignore[attr-defined]
    Tensor.mT.__get__: Tensor.adjoint,  # type: ignore[attr-defined]
    Tensor.H.__get__: Tensor.adjoint,  # type: ignore[attr-defined]
    Tensor.mH.__get__: Tensor.adjoint,  # type: ignore[attr-defined]
}


_STILL = POINTWISE - _FOLLOWERS.keys() - VIEW_GETTERS.keys() - _BY_NUMBER - _BY_LENGTHS
_OF_THE_FIRST = frozenset([families.first_only, families.leading, families.trailing, families.padded])


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
    if function not in LOSSES or out.dim() > 0:
        return _kept(function, sources, args, kwargs, out) or _followed(function, sources, args, kwargs, out)
    losses = unreduced(function, args, kwargs)
    if losses is None:
        return Mark(None, lost=_name(function), mixed=True)
    mark = _followed(function, sources, args, kwargs, losses)
    if mark is None or mark.layout is None:
        return mark
    mixed = averages(function, args, kwargs) and uneven(mark.layout)
    return Mark(None, lost=_name(function), mixed=mixed, reduced=mark.layout.samples > 1 and not mixed)


def _followed(
    function: Callable[..., Any], sources: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> Mark | None:
    """The long way: the output as each operand sees it."""
    again: list[Tensor] = []
    if len(sources) > 1 or function in _SELECTIVE:
        twice = len(set(map(id, sources))) < len(sources)
        sources = _with_a_say(function, sources, args, kwargs)
        if not sources:
            return None
        if twice and len(sources) > 1:
            args, kwargs, again = _apart(args, kwargs)
    try:
        if len(sources) == 1:
            return _seen_from(function, sources[0], args, kwargs, out)
        return _agreed(function, [*sources, *again], args, kwargs, out)
    except NotBatchError:
        return None
    except MixedRowsError:
        return Mark(None, lost=_name(function), mixed=True)


def _with_a_say(
    function: Callable[..., Any], sources: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Sequence[Tensor]:
    """The operands whose layouts say where the output's is; the others' are looked at by the followers."""
    if function is Tensor.__getitem__:
        mark = mark_of(args[0])
        return sources if mark is None or mark.layout is None else [args[0]]
    if function in _BY_NUMBER:  # the numbers only say which rows
        numbers = kwargs.get("index", args[2] if len(args) > 2 else None)
        return [source for source in sources if source is not numbers] or sources
    if function in _NEW:  # the first operand lends its type only, and a size is none of the numbers
        numbers = args[2:] if function is Tensor.new_full else args[1:]
        named = {name: value for name, value in kwargs.items() if name != "size"}
        return [value for value in tensors_in((numbers, named)) if mark_of(value) is not None]
    if function in _BY_LENGTHS:
        return [source for source in sources if source is not args[1]] or sources
    return sources


def _agreed(function: Callable[..., Any], sources: Sequence[Tensor], args: Any, kwargs: Any, out: Tensor) -> Mark:
    """What all operands say of the output."""
    found: Mark | None = None
    without: Mark | None = None
    for source in sources:
        mark = _seen_from(function, source, args, kwargs, out)
        if mark.layout is None:
            without = mark if without is None else _worse(without, mark)
            continue
        if found is not None and mark.layout != found.layout and mark.layout.samples == 1 and out.numel() > 0:
            mark = Mark(Layout(1, 0, inner=out.shape[0]))
        elif found is not None and mark.layout != found.layout:
            raise MixedRowsError
        found = mark
    if without is not None:
        return Mark(None, lost=_name(function)) if found is not None and without.reduced else without
    assert found is not None
    return found


def _worse(one: Mark, other: Mark) -> Mark:
    """Of two operands without rows the one that says most about the output: it is a sum only if both are."""
    ranks = [2 if mark.mixed else 0 if mark.reduced else 1 for mark in (one, other)]
    return other if ranks[1] > ranks[0] else one


def _kept(
    function: Callable[..., Any], sources: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> Mark | None:
    """The mark of an output that has its rows where all operands have them, as most have; None for any other.

    It is what the long way finds, in a fraction of its time.
    """
    first = mark_of(sources[0])
    if first is None or first.layout is None or first.pointer:
        return None
    layout, shape = first.layout, out.shape
    if function in _STILL:
        for source in sources:
            mark = first if source is sources[0] else mark_of(source)
            if mark is None or mark.layout is None or mark.pointer or source.dim() != len(shape):
                return None
            if mark.layout is not layout and mark.layout != layout:
                return None
        return first if layout.fits(shape) else None
    follower = _FOLLOWERS.get(function)
    if len(sources) > 1 or follower not in _OF_THE_FIRST:
        return None
    try:
        same = follower(function, sources[0], layout, args, kwargs, out) is layout
    except (IndexError, KeyError, ValueError, TypeError):
        return None
    return first if same and layout.fits(shape) else None


def _apart(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]:
    """Give an operand that is passed twice (``x @ x``) a second object, so that each role is looked at."""
    seen: set[int] = set()
    again: list[Tensor] = []

    def separate(value: Any) -> Any:
        if type(value) in (list, tuple):
            return type(value)(separate(item) for item in value)
        mark = mark_of(value)
        if mark is None or id(value) not in seen:
            seen.add(id(value))
            return value
        copy: Tensor = value.detach()
        set_mark(copy, mark)
        again.append(copy)
        return copy

    return tuple(map(separate, args)), {name: separate(value) for name, value in kwargs.items()}, again


def _seen_from(function: Callable[..., Any], source: Tensor, args: Any, kwargs: Any, out: Tensor) -> Mark:
    mark = mark_of(source)
    assert mark is not None
    if mark.layout is None:
        return follow_reduced(function, source, mark, args, kwargs) if mark.reduced else mark
    if mark.pointer and function not in _KEEP_POINTERS:
        return Mark(None, lost=_name(function))
    follower = _FOLLOWERS.get(function) or (families.generic if function in POINTWISE else families.lost)
    if function in VIEW_GETTERS:
        follower, function, args = families.permute, VIEW_GETTERS[function], (source,)
        if function is Tensor.t and source.dim() != 2:
            function, args = torch.permute, (source, tuple(reversed(range(source.dim()))))
    try:
        layout = follower(function, source, mark.layout, args, kwargs, out)
    except (IndexError, KeyError, ValueError, TypeError):  # called in a way that the follower does not know
        layout = None
    if layout is None and mark.layout.samples == 1 and out.numel() > 0 and out.dim() > 0:
        layout = Layout(1, 0, inner=out.shape[0])  # a batch of one: every row is its
    pointer = mark.layout.samples > 1 and (mark.pointer or routed.points(function, source, args, kwargs, out))
    if layout is mark.layout and layout.fits(out.shape) and pointer == mark.pointer:
        return mark
    if layout is None or not layout.fits(out.shape):
        reduced = layout is None and mark.layout.samples > 1 and sums(function)
        mixed = reduced and divides_by_choice(function, mark.layout)
        return Mark(None, lost=_name(function), mixed=mixed, reduced=reduced and not mixed)
    return Mark(layout, pointer=pointer)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", str(function))


def moves_rows(function: Callable[..., Any]) -> bool:
    """Whether a call does not simply combine its operands position by position."""
    return function in _FOLLOWERS or function not in POINTWISE
