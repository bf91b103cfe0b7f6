"""Everything about a model, an optimizer and a loader that stands in the way, at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from tacit.errors import ConfigurationError, MixingError, TacitError
from tacit.validation.attachable import check_attachable


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing that make_private, or a forward, would refuse.

    Attributes:
        path: the module, parameter, ``"optimizer"`` or ``"data_loader"``.
        message: what was found, why it matters, what to do.
        mixing: samples of a batch would see each other.
    """

    path: str
    message: str
    mixing: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def find_issues(module: nn.Module, optimizer: Optimizer | None = None) -> list[Issue]:
    """Return all that can be seen without running the model, with module paths."""
    found: list[Issue] = []
    for name, part in module.named_modules():
        path = name or "the model"
        found += [Issue(path, message, mixing) for message, mixing in _of_module(part)]
        for own, parameter in part.named_parameters(recurse=False):
            found += [Issue(f"{name}.{own}" if name else own, message) for message in _of_parameter(parameter)]
    if optimizer is not None and not found:
        found += _tried("optimizer", lambda: check_attachable(module, optimizer))
    return found


def raise_all(issues: list[Issue]) -> None:
    """Raise one error that lists every issue, if there are any.

    Raises:
        MixingError: one of them lets samples see each other.
        ConfigurationError: none does.
    """
    if issues:
        text = f"{len(issues)} things stand in the way:\n" + "\n".join(f"- {issue}" for issue in issues)
        raise MixingError(text) if any(issue.mixing for issue in issues) else ConfigurationError(text)


def _of_module(module: nn.Module) -> list[tuple[str, bool]]:
    kind = type(module).__name__
    found: list[tuple[str, bool]] = []
    if isinstance(module, _BatchNorm) and module.training:
        found.append(
            (
                f"{kind} in train mode, whatever its affine and track_running_stats, normalizes each sample with the "
                "others of its batch, so no sample has a gradient of its own. engine.get_compatible_module(model) "
                "replaces it.",
                True,
            )
        )
    if isinstance(module, _InstanceNorm) and module.track_running_stats and module.training:
        found.append(
            (
                f"{kind} with track_running_stats=True writes averages of private samples into a buffer, without "
                "noise. Set track_running_stats=False.",
                True,
            )
        )
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        found.append(
            (
                f"{kind} with max_norm={module.max_norm} rewrites the rows that the batch looks up, outside the noise. "
                "Set max_norm=None.",
                False,
            )
        )
    if isinstance(module, torch.jit.ScriptModule):
        found.append(("a TorchScript module, whose calls cannot be seen. Pass the original.", False))
    if isinstance(module, nn.DataParallel):
        found.append(("nn.DataParallel runs copies of the model. Pass the model inside.", False))
    return found


def _of_parameter(parameter: nn.Parameter) -> list[str]:
    if bool(is_lazy(parameter)):
        return ["a lazy parameter without a shape yet. Run one batch through the model before make_private()."]
    found = []
    if parameter.requires_grad and not parameter.is_floating_point():
        found.append(f"a trainable parameter of type {parameter.dtype}: only real floating-point ones are trained.")
    if parameter._post_accumulate_grad_hooks:
        found.append("a post-accumulate-grad hook would see the gradient before the noise. Remove it.")
    return found


def _tried(path: str, check: Callable[[], Any]) -> list[Issue]:
    try:
        check()
    except (TacitError, NotImplementedError) as error:
        return [Issue(path, str(error), isinstance(error, MixingError))]
    return []


def loader_issues(check: Callable[[], Any]) -> list[Issue]:
    """What the sampling has to say of a loader."""
    return _tried("data_loader", check)
