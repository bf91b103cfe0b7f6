"""Replace batch normalization, on a copy, by what normalizes each sample by itself."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tacit.errors import ConfigurationError

WAYS = ("group", "frozen", "instance")


class Change(NamedTuple):
    """One replacement: where, what stood there, what stands there now, and what that means."""

    path: str
    before: str
    after: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.path}: {self.before} became {self.after}. {self.meaning}"


class Conversion(NamedTuple):
    """A compatible copy of a model, and what was changed in it."""

    module: nn.Module
    changes: list[Change]


class FrozenBatchNorm(nn.Module):
    """Batch normalization by fixed statistics: an affine map of each channel, in train mode, too.

    Its ``state_dict`` has the keys of the layer that it replaces.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        if layer.running_mean is None or layer.running_var is None:
            raise ConfigurationError(
                "a batch normalization layer without running statistics (track_running_stats=False) cannot be frozen. "
                "Use batch_norm='group'."
            )
        self.eps = layer.eps
        self.weight, self.bias = layer.weight, layer.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(layer, name))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)


def compatible(module: nn.Module, *, batch_norm: str = "group") -> Conversion:
    """Return a copy of ``module`` that can be trained privately.

    Args:
        module: the model; it is left as it is.
        batch_norm: what replaces batch normalization: ``"group"`` (GroupNorm), ``"frozen"`` (its running statistics,
            which should come from public data), ``"instance"`` (InstanceNorm; for inputs with space).

    Returns:
        The copy and the list of changes. Attention and recurrent layers need no replacement.

    Raises:
        ConfigurationError: an unknown way, or a layer without the statistics that it needs.
    """
    if batch_norm not in WAYS:
        raise ConfigurationError(f"batch_norm={batch_norm!r} is not known. Known: {', '.join(map(repr, WAYS))}.")
    made = copy.deepcopy(module)
    changes: list[Change] = []
    done: dict[int, nn.Module] = {}
    for path, part in list(made.named_modules(remove_duplicate=False)):
        new = done.get(id(part))
        if new is None:
            new, change = _replaced(path or "the model", part, batch_norm)
            changes += change
            done[id(part)] = new
        if new is part:
            continue
        if not path:
            return Conversion(new, changes)
        parent, _, name = path.rpartition(".")
        made.get_submodule(parent)._modules[name] = new
    return Conversion(made, changes)


def _replaced(path: str, part: nn.Module, batch_norm: str) -> tuple[nn.Module, list[Change]]:
    if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.max_norm is not None:
        before, part.max_norm = repr(part), None
        return part, [Change(path, before, "the same without max_norm", "Rows may grow; the noise covers them.")]
    if isinstance(part, nn.modules.instancenorm._InstanceNorm) and part.track_running_stats:
        part.track_running_stats = False
        part.running_mean = part.running_var = part.num_batches_tracked = None
        return part, [Change(path, "InstanceNorm with running statistics", "without", "Each sample's own are used.")]
    if not isinstance(part, _BatchNorm):
        return part, []
    new = {"group": _group, "frozen": FrozenBatchNorm, "instance": _instance}[batch_norm](part)
    new.train(part.training)
    kept = "Affine weights are kept" if part.affine else "It has no affine weights"
    meaning = {
        "group": f"{kept}; statistics are each sample's own, over groups of channels, so fine-tuning has to adapt.",
        "frozen": f"{kept}; statistics stay what they are: they must come from public data.",
        "instance": f"{kept}; statistics are each sample's own, channel by channel.",
    }[batch_norm]
    return new, [Change(path, repr(part), repr(new).split("\n")[0], meaning)]


def _group(layer: _BatchNorm) -> nn.Module:
    """At least two channels a group: a group of one number would be normalized to zero."""
    channels = layer.num_features
    most = min(32, max(channels // 2, 1))
    groups = next(count for count in range(most, 0, -1) if channels % count == 0)
    return _with_weights(nn.GroupNorm(groups, channels, eps=layer.eps, affine=layer.affine), layer)


def _instance(layer: _BatchNorm) -> nn.Module:
    kinds: dict[type[nn.Module], Any] = {nn.BatchNorm1d: nn.InstanceNorm1d, nn.BatchNorm3d: nn.InstanceNorm3d}
    kind = next((new for old, new in kinds.items() if isinstance(layer, old)), nn.InstanceNorm2d)
    return _with_weights(kind(layer.num_features, eps=layer.eps, affine=layer.affine), layer)


def _with_weights(new: nn.Module, layer: _BatchNorm) -> nn.Module:
    if layer.affine:
        new.weight, new.bias = layer.weight, layer.bias
    place = next((p for p in (*layer.parameters(), *layer.buffers()) if torch.is_floating_point(p)), None)
    return new if place is None else new.to(place.device, place.dtype)
