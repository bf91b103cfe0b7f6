"""A private step with nothing around it: the price of its arithmetic and noise alone, on the machine at hand.

Nobody looks at what the model does with its batch, at what is in ``.grad``, or at numbers that cancel or overflow;
nothing is counted, and layers are known by their classes. So it is private by luck, and a floor: what a step of tacit's
takes beyond it is the price of being sure. It knows no recurrent layers, tied weights or layers of other libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Case
from benchmarks.contestants import MAX_GRAD_NORM, Contestant, Make, ingredients
from tacit.mechanisms import NoiseSource, add_gaussian_noise
from tacit.uses import TUNER, Gather, Geometry, Product, costs_of, gradients, gradients_by_patches, row_gradients


class Held(NamedTuple):
    """What is held of one parameter until the clip.

    Attributes:
        parameter: it.
        squares: returns squared norms ``(B,)``.
        total: returns the clipped sum, of factors ``(B,)``.
    """

    parameter: nn.Parameter
    squares: Callable[[], Tensor]
    total: Callable[[Tensor], Tensor]


def _whole(parameter: nn.Parameter, each: Tensor) -> Held:
    rows = each.reshape(len(each), -1)
    return Held(
        parameter,
        lambda: torch.linalg.vector_norm(rows, dim=1).square(),
        lambda factors: rows.t().mv(factors).view(parameter.shape),
    )


def _factors(parameter: nn.Parameter, a: Tensor, g: Tensor) -> Held:
    """Of a matrix product, by its two factors: ``(B, T, d)`` and ``(B, T, p)``."""

    def squares() -> Tensor:
        if a.shape[1] == 1:
            return a.square().sum((1, 2)) * g.square().sum((1, 2))
        return torch.bmm(a, a.transpose(1, 2)).mul_(torch.bmm(g, g.transpose(1, 2))).sum((1, 2))

    def total(factors: Tensor) -> Tensor:
        scaled = g * factors[:, None, None]
        return scaled.flatten(0, 1).t() @ a.flatten(0, 1)

    return Held(parameter, squares, total)


def _product(parameter: nn.Parameter, a: Tensor, g: Tensor) -> Held:
    product = Product(len(a), a.shape[1], a.shape[2], g.shape[2])
    if a.shape[1] > 1 and TUNER.pick(costs_of(a.device, a.dtype).seconds(product)) == "stored":
        return _whole(parameter, torch.bmm(g.transpose(1, 2), a))
    return _factors(parameter, a, g)


class _Layer(torch.autograd.Function):
    """A layer whose backward holds what the clip needs. ``anchor`` makes it run for inputs that want no gradient."""

    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, x: Tensor, layer: nn.Module, kind: type[Kind], held: list[Held]) -> Tensor:
        out, kept = kind.forward(layer, x)
        ctx.save_for_backward(x, *kept)
        ctx.settings = layer, kind, held
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        layer, kind, held = ctx.settings
        gradient, new = kind.backward(layer, g, *ctx.saved_tensors, wanted=ctx.needs_input_grad[1])
        held += new
        return None, gradient, None, None, None


class Kind:
    """How layers of one class are run."""

    @staticmethod
    def forward(layer: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output, and what the backward needs beside the input."""
        raise NotImplementedError

    @staticmethod
    def backward(layer: Any, g: Tensor, *kept: Tensor, wanted: bool) -> tuple[Tensor | None, list[Held]]:
        """The input's gradient, if it is wanted, and what is held."""
        raise NotImplementedError


class _Linear(Kind):
    @staticmethod
    def forward(layer: nn.Linear, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return F.linear(x, layer.weight, layer.bias), ()

    @staticmethod
    def backward(layer: nn.Linear, g: Tensor, *kept: Tensor, wanted: bool) -> tuple[Tensor | None, list[Held]]:
        (x,) = kept
        a, rows = (value.reshape(len(value), -1, value.shape[-1]) for value in (x, g))
        held = [_product(layer.weight, a, rows), _whole(layer.bias, rows.sum(1))]
        return g @ layer.weight if wanted else None, held


class _LayerNorm(Kind):
    @staticmethod
    def forward(layer: nn.LayerNorm, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        out, mean, rstd = torch.native_layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
        return out, (mean, rstd)

    @staticmethod
    def backward(layer: nn.LayerNorm, g: Tensor, *kept: Tensor, wanted: bool) -> tuple[Tensor | None, list[Held]]:
        x, mean, rstd = kept
        normal = (x - mean).mul_(rstd).mul_(g)
        held = [
            _whole(layer.weight, normal.flatten(1, -2).sum(1)),
            _whole(layer.bias, g.flatten(1, -2).sum(1)),
        ]
        shape, only = list(layer.normalized_shape), [wanted, False, False]
        backward = torch.ops.aten.native_layer_norm_backward
        return backward(g, x, shape, mean, rstd, layer.weight, layer.bias, only)[0], held


class _Embedding(Kind):
    @staticmethod
    def forward(layer: nn.Embedding, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return F.embedding(x, layer.weight), ()

    @staticmethod
    def backward(layer: nn.Embedding, g: Tensor, *kept: Tensor, wanted: bool) -> tuple[Tensor | None, list[Held]]:
        use = Gather(kept[0], g, layer.num_embeddings)

        def total(factors: Tensor) -> Tensor:
            return use.weighted_sum(factors.double(), MAX_GRAD_NORM)

        return None, [Held(layer.weight, use.squared_norms, total)]


class _Conv(Kind):
    @staticmethod
    def forward(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding), ()

    @staticmethod
    def backward(layer: nn.Conv2d, g: Tensor, *kept: Tensor, wanted: bool) -> tuple[Tensor | None, list[Held]]:
        (x,), shape = kept, layer.weight.shape
        geometry = Geometry(layer.stride, layer.padding, (1, 1), 1)
        forms = {form.__name__: partial(form, x, g, shape, geometry) for form in (row_gradients, gradients_by_patches)}
        each = forms[TUNER.choose(("bare", x.shape, shape), forms, "row_gradients")]()
        held = [_whole(layer.weight, each)]
        if layer.bias is not None:
            held.append(_whole(layer.bias, g.sum((2, 3))))
        only = [True, False, False]
        return gradients(g, x, layer.weight, geometry, 1, only)[0] if wanted else None, held


class _GroupNorm(Kind):
    @staticmethod
    def forward(layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        samples, channels, pixels = len(x), layer.num_channels, x[0, 0].numel()
        values = samples, channels, pixels, layer.num_groups, layer.eps
        out, mean, rstd = torch.native_group_norm(x, layer.weight, layer.bias, *values)
        return out, (mean, rstd)

    @staticmethod
    def backward(layer: nn.GroupNorm, g: Tensor, *kept: Tensor, wanted: bool) -> tuple[Tensor | None, list[Held]]:
        x, mean, rstd = kept
        samples, channels, pixels = len(x), layer.num_channels, x[0, 0].numel()
        folded = [value.reshape(1, samples * channels, pixels) for value in (g, x)]
        statistics = [value.view(1, -1) for value in (mean, rstd)]
        sizes = 1, samples * channels, pixels, samples * layer.num_groups, [True, True, True]
        weight = layer.weight.detach().repeat(samples)
        backward = torch.ops.aten.native_group_norm_backward
        gradient, *each = backward(*folded, *statistics, weight, *sizes)
        pairs = zip((layer.weight, layer.bias), each, strict=True)
        return gradient.view_as(x), [_whole(p, value.view(samples, -1)) for p, value in pairs]


KINDS: dict[type[nn.Module], type[Kind]] = {
    nn.Linear: _Linear,
    nn.LayerNorm: _LayerNorm,
    nn.Embedding: _Embedding,
    nn.Conv2d: _Conv,
    nn.GroupNorm: _GroupNorm,
}


class Bare(Contestant):
    """Takes private steps by hand."""

    def prepare(self, noise_multiplier: float) -> None:
        """Take the layers over."""
        self._std = noise_multiplier * MAX_GRAD_NORM
        self._noise = NoiseSource()
        self._noise.prepare(list(self.model.parameters()))
        self._held: list[Held] = []
        anchor = torch.zeros((), requires_grad=True)
        for layer in self.model.modules():
            kind = KINDS.get(type(layer))
            if kind is not None:
                layer.forward = partial(self._run, anchor, layer, kind)

    def _run(self, anchor: Tensor, layer: nn.Module, kind: type[Kind], x: Tensor) -> Any:
        return _Layer.apply(anchor, x, layer, kind, self._held)

    def step(self, batch: Any) -> None:
        inputs, labels = batch
        self.optimizer.zero_grad()
        self.criterion(self.model(inputs), labels).backward()
        with torch.no_grad():
            self._clip(len(labels))
        self.optimizer.step()

    def _clip(self, samples: int) -> None:
        norms = torch.stack([held.squares().float() for held in self._held]).sum(0).sqrt().mul_(samples)
        factors = samples * (MAX_GRAD_NORM / norms).clamp_(max=1)
        totals = [held.total(factors) for held in self._held]
        noisy = add_gaussian_noise(totals, std=self._std, divisor=samples, noise=self._noise, in_place=True)
        for held, gradient in zip(self._held, noisy, strict=True):
            held.parameter.grad = gradient
        self._held.clear()


def bare(device: str) -> Make:
    def make(case: Case, noise: float, overrides: dict[str, Any]) -> Contestant | None:
        model, optimizer, loader = ingredients(case, overrides, device)
        with_parameters = [type(layer) for layer in model.modules() if list(layer.parameters(recurse=False))]
        if device != "cpu" or not _known(with_parameters):
            return None
        contestant = Bare("bare", model, optimizer, loader, case.criterion, device)
        contestant.prepare(noise)
        return contestant

    return make


def _known(classes: Sequence[type[nn.Module]]) -> bool:
    return all(each in KINDS for each in classes)
