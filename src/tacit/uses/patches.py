"""The use of a convolution's weight, that holds its input and output gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.uses.base import Use, zero_samples
from tacit.uses.dense import Dense
from tacit.uses.formed import BLOCK, formed_at_once
from tacit.uses.numerics import (
    block_squares,
    cautious,
    excessive,
    sample_squares,
    sizes,
    untrusted,
    wide,
    wide_dtype,
)
from tacit.uses.questions import any_of
from tacit.uses.units import Units


@dataclass(frozen=True, slots=True)
class Geometry:
    """The constants of one convolution, one number per spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def plain(self) -> bool:
        """Every pixel begins a patch, and patches are contiguous."""
        return self.groups == 1 and {*self.stride, *self.dilation} == {1}


class Patches(Use):
    """Input ``x`` (B, C, *) and output gradient ``g`` (B, p, *) of a convolution.

    ``G[b]`` is the sum over positions t of g_t times the patch at t. Of a plain 2-d convolution norms come from Gram
    matrices, ``‖G‖² = Σ_ts (g_t·g_s)(patch_t·patch_s)``, and those of the patches from the one of the pixels, shifted:
    ``patch_t·patch_s = Σ_o pixel_(t+o)·pixel_(s+o)``. So no patch is copied. Of any other, or where that is quicker, G
    is formed for the norm, a few samples at a time. The clipped sum is the convolution's own weight gradient, with g
    scaled by sample.

    Args:
        x, g, shape, geometry: as above.
        way: how the norm is found: "pixels", or how G is formed for it, "grouped" or "unfolded" (without groups).
    """

    def __init__(self, x: Tensor, g: Tensor, shape: torch.Size, geometry: Geometry, *, way: str = "pixels") -> None:
        self.way = way
        self.x = x
        self.g = g
        self.samples = x.shape[0]
        self.shape = shape
        self.geometry = geometry

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.x, self.g

    def lengths(self) -> Tensor:
        """A bound on the lengths of each sample's terms together: ``(B,)``, float64."""
        x_squares, g_squares = self.part_squares()
        # Each pixel is in at most as many patches as the kernel has places.
        return (x_squares * prod(self.shape[2:]) * g_squares).sqrt()

    def squared_norms(self) -> Tensor:
        return self._gram_norms() if self.way == "pixels" else self._formed_norms()

    def _formed_norms(self) -> Tensor:
        """Those of whole gradients; again in float64 where they are mostly rounding error of what cancelled."""
        squares = torch.empty(self.samples, dtype=torch.float64, device=self.device)
        dtype = wide_dtype(self.x)
        some = formed_at_once(self.samples, self.shape[0], prod(self.shape[1:]), dtype.itemsize)
        form = gradients_by_patches if self.way == "unfolded" else row_gradients
        for start in range(0, self.samples, some):
            part = slice(start, start + some)
            formed = form(wide(self.x[part]), wide(self.g[part]), self.shape, self.geometry)
            squares[part] = block_squares(formed.flatten(1))
        return self._in_double(squares, untrusted(squares, self.lengths().square(), self.part_squares(), dtype))

    def _gram_norms(self) -> Tensor:
        x, rows = wide(self.x), wide(self.g).flatten(2)
        patches = self._patch_grams(x)
        grams = torch.bmm(rows.transpose(1, 2), rows)
        a_squares, g_squares = (torch.diagonal(each, dim1=1, dim2=2).double() for each in (patches, grams))
        lengths = (a_squares * g_squares).clamp(min=0).sqrt().sum(1)
        squares = patches.mul_(grams).sum((1, 2), dtype=torch.float64)
        doubtful = untrusted(squares, lengths.square(), (a_squares.sum(1), g_squares.sum(1)), x.dtype)
        return self._in_double(cautious(squares, sizes(patches), x.dtype), doubtful)

    def _in_double(self, squares: Tensor, doubtful: Tensor) -> Tensor:
        if any_of(doubtful):
            squares[doubtful] = sample_squares(self._part(doubtful).dense())
        return squares

    def _patch_grams(self, x: Tensor) -> Tensor:
        """(B, T, T)."""
        height, width = self.g.shape[2:]
        pixels = x.flatten(2)
        spaces = x.shape[2:]
        grams = torch.bmm(pixels.transpose(1, 2), pixels).view(-1, *spaces, *spaces)
        down, right = self.geometry.padding
        grams = F.pad(grams, (right, right, down, down) * 2) if down or right else grams
        total = grams.new_zeros((x.shape[0], height, width, height, width))
        for i in range(self.shape[2]):
            for j in range(self.shape[3]):
                total += grams[:, i : i + height, j : j + width, i : i + height, j : j + width]
        return total.view(-1, height * width, height * width)

    def _part(self, chosen: Tensor) -> Patches:
        return Patches(self.x[chosen].double(), self.g[chosen].double(), self.shape, self.geometry)

    def excess(self, factors: Tensor, limit: float) -> Tensor:
        return excessive(self.lengths(), factors, limit)

    def weighted_sum(self, factors: Tensor, limit: float | None) -> Tensor:
        if limit is None or not any_of(apart := self.excess(factors, limit)):
            return self._sum(factors)
        rest = torch.tensordot(factors[apart].double(), self._part(apart).dense(), 1)
        return self._sum(factors.masked_fill(apart, 0)).add_(rest)

    def _sum(self, factors: Tensor) -> Tensor:
        x, g = wide(self.x), wide(self.g)
        scaled = g * factors.to(g.dtype).reshape(-1, *[1] * (g.dim() - 1))
        groups, wanted = self.geometry.groups, [False, True, False]
        found: Tensor = gradients(scaled, x, x.new_empty(self.shape), self.geometry, groups, wanted)[1]
        return found

    def dense(self) -> Tensor:
        return row_gradients(wide(self.x), wide(self.g), self.shape, self.geometry)

    def without(self, dropped: Tensor) -> Use:
        x, g = zero_samples(self.x, dropped), zero_samples(self.g, dropped)
        return Patches(x, g, self.shape, self.geometry, way=self.way)

    def transposed(self) -> Use:
        return Dense(self.dense()).transposed()

    def grouped(self, units: Units) -> Use:
        return Dense(self.dense()).grouped(units)

    def reshaped(self, shape: torch.Size) -> Use:
        return Dense(self.dense()).reshaped(shape)

    def placed(self, first: int, rows: int) -> Use:
        return Dense(self.dense()).placed(first, rows)


def gradients(g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, groups: int, wanted: list[bool]) -> Any:
    """Gradients of a convolution; of ``weight`` only the shape is read when its own is asked for."""
    zeros = [0] * len(geometry.stride)
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, geometry.stride, geometry.padding, geometry.dilation, False, zeros, groups, wanted
    )


def row_gradients(x: Tensor, g: Tensor, shape: Sequence[int], geometry: Geometry) -> Tensor:
    """Weight gradient of each row, (N, *shape): rows folded into channel groups of one convolution."""
    size = x.shape[0]
    folded_x, folded_g = _folded(x), _folded(g)
    like = x.new_empty(size * shape[0], *shape[1:])
    found = gradients(folded_g, folded_x, like, geometry, size * geometry.groups, [False, True, False])[1]
    return found.view(size, *shape)  # type: ignore[no-any-return]


def _folded(rows: Tensor) -> Tensor:
    """Rows as channels, (N, C, *) → (1, N·C, *). Strides of sizes that are 1 must say nothing of channels that come
    last: torch would form the gradient in that order, and then refuse it."""
    return rows.reshape(-1).view(1, rows.shape[0] * rows.shape[1], *rows.shape[2:])


def gradients_by_patches(x: Tensor, g: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """Weight gradient of each row, (N, *shape), in float32 at least: products with the patches, which are copied for a
    few rows at a time and stay in the cache. Of a convolution without groups."""
    rows, kernel, dtype = len(x), shape[2:], wide_dtype(x)
    out = torch.empty((rows, shape[0], prod(shape[1:])), dtype=dtype, device=x.device)
    some = max(1, BLOCK // (prod(g.shape[2:]) * out.shape[2] * dtype.itemsize))
    for start in range(0, rows, some):
        part = slice(start, start + some)
        rows_g, windows = wide(g[part]).flatten(2), _windows(wide(x[part]), kernel, geometry)
        patches = windows.reshape(len(rows_g), -1, rows_g.shape[2])
        torch.bmm(rows_g, patches.transpose(1, 2), out=out[part])
    return out.view(rows, *shape)


def unfold(x: Tensor, kernel: Sequence[int], geometry: Geometry) -> Tensor:
    """Copy the patches under the kernel: (N, C, *) → (N, output positions, C · kernel size)."""
    dims = len(kernel)
    windows = _windows(x, kernel, geometry)
    positions = windows.shape[-dims:]
    return windows.movedim(tuple(range(-dims, 0)), tuple(range(1, 1 + dims))).reshape(len(x), prod(positions), -1)


def _windows(x: Tensor, kernel: Sequence[int], geometry: Geometry) -> Tensor:
    """What each place of the kernel meets: (N, C, *) → (N, C, *kernel, *output positions), a view of ``x``, padded."""
    padding = [width for side in reversed(geometry.padding) for width in (side, side)]
    x = F.pad(x, padding).contiguous() if any(padding) else x.contiguous()
    spatial = range(len(kernel))
    outputs = [(x.shape[2 + i] - geometry.dilation[i] * (kernel[i] - 1) - 1) // geometry.stride[i] + 1 for i in spatial]
    steps = x.stride()
    strides = (
        *steps[:2],
        *(steps[2 + i] * geometry.dilation[i] for i in spatial),
        *(steps[2 + i] * geometry.stride[i] for i in spatial),
    )
    return x.as_strided((*x.shape[:2], *kernel, *outputs), strides)
