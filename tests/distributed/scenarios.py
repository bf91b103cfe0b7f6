"""What the processes of these tests do: each function gets its rank and the number of processes."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tacit import BatchMemoryManager, PrivacyEngine

CLASSES, BOUND = 3, 0.3


class Unused(nn.Module):
    """A multilayer perceptron with a parameter that has no part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, CLASSES))
        self.idle = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, CLASSES)),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, CLASSES)
    ),
    "unused": Unused,
}


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        model: one of ``MODELS``.
        mode: grad_sample_mode.
        wrap: "before" or "after" make_private.
        pieces: "whole", "no_sync" (three backwards, of which the last is averaged), "manager", or "synced" (two
            forwards and backwards, both averaged).
        ddp: arguments of DistributedDataParallel.
        batch: records per process and batch.
    """

    model: str = "mlp"
    mode: str = "auto"
    wrap: str = "before"
    pieces: str = "whole"
    ddp: dict[str, Any] = field(default_factory=dict)
    batch: int = 4
    records: int = 30
    noise: float = 0.0
    sampling: str = "poisson"
    reduction: str = "mean"
    parted: bool = False
    epochs: int = 1


def data(records: int) -> TensorDataset:
    torch.manual_seed(0)
    return TensorDataset(
        torch.randn(records, 6, dtype=torch.float64), torch.randint(0, CLASSES, (records,)), torch.arange(records)
    )


def model_of(name: str, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name]().double()


def loader_of(case: Case) -> DataLoader[Any]:
    records = data(case.records)
    sampler = DistributedSampler(records) if case.parted else None
    generator = torch.Generator().manual_seed(5)
    return DataLoader(records, batch_size=case.batch, sampler=sampler, generator=generator)


def made(case: Case, **more: Any) -> tuple[Any, ...]:
    """A private run of this process: engine, plain model, callable model, optimizer, loader, criterion."""
    plain = model_of(case.model)
    model: Any = DistributedDataParallel(plain, **case.ddp) if case.wrap == "before" else plain
    engine = more.pop("engine", None) or PrivacyEngine()
    settings = {"noise_multiplier": case.noise, "max_grad_norm": BOUND, "sampling": case.sampling} | more
    _, optimizer, loader, *rest = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(plain.parameters(), lr=0.5),
        data_loader=loader_of(case),
        grad_sample_mode=case.mode,
        loss_reduction=case.reduction,
        **settings,
    )
    if case.wrap == "after":
        model = DistributedDataParallel(plain, **case.ddp)
    criterion = rest[0] if rest else nn.CrossEntropyLoss(reduction=case.reduction)
    return engine, plain, model, optimizer, loader, criterion


def batches(case: Case, loader: Any, optimizer: Any) -> Iterator[Any]:
    for _ in range(case.epochs):
        if case.pieces == "manager":
            with BatchMemoryManager(data_loader=loader, max_physical_batch_size=2, optimizer=optimizer) as physical:
                yield from physical
        else:
            yield from loader


def backward(case: Case, model: Any, criterion: Any, x: Tensor, y: Tensor) -> None:
    if case.pieces == "synced":
        half = len(x) // 2
        for part in (slice(0, half), slice(half, None)):
            criterion(model(x[part]), y[part]).backward()
        return
    pieces = 3 if case.pieces == "no_sync" else 1
    parts = list(zip(x.chunk(pieces), y.chunk(pieces), strict=True))
    for number, (part_x, part_y) in enumerate(parts, 1):
        with nullcontext() if number == len(parts) else model.no_sync():
            criterion(model(part_x), part_y).backward()


def gradients(rank: int, world: int, case: Case) -> list[Any]:
    """Train; for each step the records of this process, the weights before it and the released gradient."""
    engine, plain, model, optimizer, loader, criterion = made(case)
    steps, rows = [], []
    for x, y, index in batches(case, loader, optimizer):
        optimizer.zero_grad()
        before = {name: p.detach().clone() for name, p in plain.named_parameters()}
        backward(case, model, criterion, x, y)
        rows += index[: len(index) - engine._attached.session.padding].tolist()
        releases = engine.accountant.steps
        optimizer.step()
        if engine.accountant.steps > releases:
            released = {name: p.grad.clone() for name, p in plain.named_parameters()}
            steps.append((rows, before, released))
            rows = []
    return [steps, engine.plan.sampling.expected_batch_size, engine.get_epsilon(1e-5)]


def several(rank: int, world: int, cases: list[Case]) -> list[Any]:
    return [gradients(rank, world, case) for case in cases]
