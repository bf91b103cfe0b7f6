"""One private backward, without noise and without a release."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tacit.accounting import create_accountant
from tacit.attachment import Attachment
from tacit.capture.marks import tensors_in
from tacit.checking.reference import LossFunction, without_dropout
from tacit.plan import PrivacyPlan
from tacit.planning import sampling_of
from tacit.settings import MODES, Settings
from tacit.validation import check_attachable


def private_gradients(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    *,
    max_grad_norm: float,
    grad_sample_mode: str = "auto",
    loss_reduction: str = "mean",
    batch_first: bool = True,
    criterion: Callable[..., Any] | None = None,
    clipping: str = "flat",
    memory_budget: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run one private backward on a copy of ``model``, without noise and without a release.

    Returns:
        Per-sample norms ``(B,)``, and the clipped sum by parameter name.
    """
    model = without_dropout(copy.deepcopy(model))
    samples = tensors_in(batch)[0].shape[0 if batch_first else 1]
    loader = DataLoader(TensorDataset(torch.arange(max(samples, 1))), batch_size=max(samples, 1))
    ghost = grad_sample_mode == "ghost"
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    parameters = check_attachable(model, optimizer)
    attached = Attachment(
        model,
        parameters,
        optimizer,
        loader,
        PrivacyPlan(0.0, max_grad_norm, clipping, loss_reduction, sampling_of(loader), tuple(parameters)),
        Settings(MODES[grad_sample_mode], batch_first, None, memory_budget=memory_budget),
        create_accountant("rdp"),
    )
    extra = () if criterion is None else (attached.criterion(criterion) if ghost else criterion,)
    loss_fn(model, batch, *extra).backward()
    stats = attached.stats
    norms = torch.zeros(0, dtype=torch.float64) if stats is None else stats.norms
    sums = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    attached.detach()
    return norms, sums
