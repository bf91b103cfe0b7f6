"""One look at a model and its loss before training: is each sample's gradient its own?"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tacit.capture.marks import map_tensors, tensors_in
from tacit.checking.compare import compare
from tacit.checking.diagnosis import TOLERANCE, Finding, coupled_loss, mixing_layer, one, trace
from tacit.checking.private import private_gradients
from tacit.checking.randomness import NoRandomness
from tacit.checking.reference import LossFunction, double, single_sample_loop, without_dropout
from tacit.distributed import is_spread
from tacit.errors import ConfigurationError, PrivacyError

SAMPLES = 4
_NOTHING = 1e12


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What ``engine.check`` found.

    Attributes:
        findings: what is wrong; empty if nothing is.
        norm_error: largest relative error of a per-sample norm; NaN if the private step was refused.
        sum_error: relative error of the clipped sum.
        by_parameter: error of each parameter's clipped sum, relative to the norm of the whole.
        samples: how many samples were looked at.
    """

    findings: tuple[Finding, ...]
    norm_error: float
    sum_error: float
    by_parameter: Mapping[str, float]
    samples: int

    @property
    def ok(self) -> bool:
        return not self.findings

    def raise_if_bad(self) -> None:
        """Raise PrivacyError with all findings, if there are any."""
        if self.findings:
            raise PrivacyError(str(self))

    def __str__(self) -> str:
        if self.ok:
            return (
                f"On {self.samples} samples the private gradient equals the loop over single samples: norms to "
                f"{self.norm_error:.0e}, clipped sum to {self.sum_error:.0e}."
            )
        lines = [f"- {finding.message}" for finding in self.findings]
        worst = sorted(self.by_parameter.items(), key=lambda item: -item[1])[:5]
        wrong = [f"{name} ({_share(error)})" for name, error in worst if not error <= TOLERANCE]
        if wrong:
            lines.append(f"- the parameters that differ most from the loop over single samples: {', '.join(wrong)}.")
        return "The check found:\n" + "\n".join(lines)


def _share(error: float) -> str:
    return f"{error:.1e}" if error < _NOTHING else "single samples give it no gradient"


def check_model(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    *,
    grad_sample_mode: str = "auto",
    loss_reduction: str = "mean",
    batch_first: bool = True,
    criterion: Any = None,
) -> CheckReport:
    """Run the private step with zero noise against the loop over single samples, on a copy, in float64.

    Args:
        model: the model; it and the random generators are left as they are.
        loss_fn: ``loss_fn(model, batch)`` → scalar; a third argument ``criterion`` is given if there is one.
        batch: tensors, or containers of tensors, with the batch in dimension 0 (1 if not ``batch_first``); the first
            few samples are used.
        grad_sample_mode: as for ``make_private``.
        loss_reduction: as for ``make_private``.
        batch_first: as for ``make_private``.
        criterion: the loss, where ``loss_fn`` takes one.
    """
    if any(is_spread(p) for p in model.parameters()):
        raise ConfigurationError(
            "check: the parameters are spread over processes (fully_shard), and a model is looked at on a copy. "
            "Look at it in one process, before fully_shard()."
        )
    tensors = tensors_in(batch)
    if not tensors:
        raise ConfigurationError(f"check: the batch, a {type(batch).__name__}, holds no tensor.")
    dim = 0 if batch_first else 1
    samples = min(SAMPLES, tensors[0].shape[dim if tensors[0].dim() > dim else 0])
    if samples < 2:
        raise ConfigurationError("check: with a single sample nothing can be told of others. Give a larger batch.")
    few = map_tensors(lambda value: double(value.detach().narrow(dim if value.dim() > dim else 0, 0, samples)), batch)
    plain = without_dropout(copy.deepcopy(model).double())
    extra = () if criterion is None else (criterion,)
    settings: dict[str, Any] = {"criterion": criterion}
    with torch.random.fork_rng(), NoRandomness(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        findings = _diagnose(plain, loss_fn, few, extra, samples, dim, loss_reduction)
        try:
            reference = single_sample_loop(plain, loss_fn, few, batch_dim=dim, **settings)
            norms, sums = private_gradients(
                plain,
                loss_fn,
                few,
                max_grad_norm=reference.max_grad_norm,
                grad_sample_mode=grad_sample_mode,
                loss_reduction=loss_reduction,
                batch_first=batch_first,
                **settings,
            )
            report = compare(reference, norms, sums)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            findings.append(Finding("refused", "", str(error)))
            return CheckReport(tuple(findings), float("nan"), float("nan"), {}, samples)
    if not findings and not (report.norm_error <= TOLERANCE and report.sum_error <= TOLERANCE):
        findings.append(Finding("gradient", "", _UNEXPLAINED))
    return CheckReport(tuple(findings), report.norm_error, report.sum_error, report.by_parameter, samples)


_UNEXPLAINED = (
    "the private gradient differs from the loop over single samples, though outputs and losses agree. A mean whose "
    "divisor is not the number of samples, or a forward that behaves differently each time, can cause this."
)


def _diagnose(
    plain: nn.Module, loss_fn: LossFunction, few: Any, extra: tuple[Any, ...], samples: int, dim: int, reduction: str
) -> list[Finding]:
    """Compare outputs and losses of the batch with those of its samples alone."""
    whole = trace(plain, loss_fn, few, extra)
    try:
        alone = [trace(plain, loss_fn, one(few, b, dim), extra) for b in range(samples)]
    except (RuntimeError, ValueError, IndexError) as error:
        return _fails_alone(plain, error)
    mixed = [mixing_layer(whole, part, b, samples) for b, part in enumerate(alone)]
    found = next((finding for finding in mixed if finding is not None), None)
    if found is None:
        coupled = coupled_loss(whole.loss, [part.loss for part in alone], reduction)
        return [] if coupled is None else [coupled]
    if _fits(plain, loss_fn, few, extra, 1 - dim):
        return [
            Finding(
                "batch_first",
                found.path,
                f"{found.path} treats dimension {dim} of its input as something else than the batch; dimension "
                f"{1 - dim} holds independent samples. Say batch_first={dim == 1} to make_private, or give the layer "
                "its batch_first.",
            )
        ]
    return [found]


def _fails_alone(plain: nn.Module, error: Exception) -> list[Finding]:
    norms = [name for name, m in plain.named_modules() if isinstance(m, _BatchNorm) and m.training]
    if not norms:
        words = f"the loss cannot be computed for one sample alone ({error}), so that no sample has one of its own."
        return [Finding("layer", "", words)]
    return [
        Finding(
            "layer",
            name,
            f"{name or 'the model'} is batch normalization in train mode: it normalizes each sample with the others of "
            "its batch, so no sample has a gradient of its own. engine.get_compatible_module(model) replaces it.",
        )
        for name in norms
    ]


def _fits(plain: nn.Module, loss_fn: LossFunction, few: Any, extra: tuple[Any, ...], dim: int) -> bool:
    """Whether samples are independent along another dimension."""
    sizes = {value.shape[dim] for value in tensors_in(few) if value.dim() > 1}
    if len(sizes) != 1 or min(sizes) < 2:
        return False
    samples = min(sizes)
    whole = trace(plain, loss_fn, few, extra)
    try:
        parts = [trace(plain, loss_fn, _along(few, b, dim), extra) for b in (0, samples - 1)]
    except (RuntimeError, ValueError, IndexError):
        return False
    return all(mixing_layer(whole, part, b, samples) is None for b, part in zip((0, samples - 1), parts, strict=True))


def _along(few: Any, b: int, dim: int) -> Any:
    return map_tensors(lambda value: value.narrow(dim, b, 1) if value.dim() > 1 else value, few)
