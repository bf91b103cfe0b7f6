"""What the processes of these tests do: each function gets its rank and the number of processes."""

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import language
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import tacit.step
from tacit import BatchMemoryManager, Ledger, PrivacyEngine
from tacit.accounting.releases import PoissonRelease
from tacit.distributed.averaging import _Mean
from tacit.errors import BudgetError, ConfigurationError, LedgerError
from tacit.sampling import UserPoissonSampling

CLASSES, BOUND = 3, 0.3


class Unused(nn.Module):
    """A multilayer perceptron with a parameter that has no part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, CLASSES))
        self.idle = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Checkpointed(nn.Module):
    """A multilayer perceptron whose first part is recomputed in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.net = nn.Sequential(nn.Linear(6, 7), nn.Tanh())
        self.last = nn.Linear(7, CLASSES)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.net, self.first(x), use_reentrant=self.reentrant))


class Scale(nn.Module):
    """Puts out what is made of a parameter alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.weight, self.weight.square()


class Scaled(nn.Module):
    """Takes that in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.layer(x) * scale


class Routed(nn.Module):
    """Experts that each process uses only as its own rows need them, of shapes that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, n), nn.Tanh(), nn.Linear(n, 6)) for n in (4, 5, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        chosen = (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long()
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            rows = torch.where(chosen == number)[0]
            if len(rows):
                out = out.index_add(0, rows, expert(h[rows]))
        return self.last(out.tanh())


class Lent(nn.Module):
    """What is made of a parameter is used in several modules: one of the model's, or another module's."""

    def __init__(self, other: bool) -> None:
        super().__init__()
        self.scale = Scale()
        self.first = Scaled()
        self.second = Scaled()
        self.last = nn.Linear(6, CLASSES)
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        x, scale = self.scale(x)
        x = self.first(x, scale).tanh()
        return self.last(self.second(x, scale))


class Odd(nn.Module):
    """A multilayer perceptron with a call that has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.special.xlog1py(x, self.weight.abs()))


MODELS = {
    "odd": Odd,
    "routed": Routed,
    "lent": lambda: Lent(False),
    "lent by another": lambda: Lent(True),
    "gpt2": lambda: language.gpt2(CLASSES),
    "gpt2 recomputed": lambda: language.gpt2(CLASSES, use_reentrant=False),
    "gpt2 reentrant": lambda: language.gpt2(CLASSES, use_reentrant=True),
    "llama": lambda: language.llama(CLASSES),
    "llama adapted": lambda: language.adapted(CLASSES),
    "mlp": lambda: nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, CLASSES)),
    "even": lambda: nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, CLASSES)),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, CLASSES)
    ),
    "unused": Unused,
    "checkpointed": lambda: Checkpointed(False),
    "reentrant": lambda: Checkpointed(True),
}


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        model: one of ``MODELS``.
        mode: grad_sample_mode.
        wrap: "before" or "after" make_private; "shard": fully_shard instead of DistributedDataParallel.
        pieces: "whole", "no_sync" (three backwards, of which the last is averaged), "manager", or "synced" (two
            forwards and backwards, both averaged).
        ddp: arguments of DistributedDataParallel.
        shard: arguments of fully_shard, of each module that owns parameters and of the model.
        nested: or of the model only.
        replicas: how many processes hold the same shard.
        batch: records per process and batch.
        bounds: max_grad_norm; for ``clipping="grouped"`` a bound for each pattern of names.
        scale: losses are multiplied by so many powers of two, by a GradScaler.
    """

    model: str = "mlp"
    mode: str = "auto"
    wrap: str = "before"
    pieces: str = "whole"
    ddp: dict[str, Any] = field(default_factory=dict)
    shard: dict[str, Any] = field(default_factory=dict)
    nested: bool = True
    replicas: int = 1
    batch: int = 4
    records: int = 30
    noise: float = 0.0
    sampling: str = "poisson"
    reduction: str = "mean"
    parted: bool = False
    epochs: int = 1
    clipping: str = "flat"
    bounds: Any = BOUND
    to_none: bool = True
    memory_budget: int | None = None
    scale: int | None = None


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
    given = more.pop("plain", None)
    plain = model_of(case.model) if given is None else given
    model: Any = DistributedDataParallel(plain, **case.ddp) if case.wrap == "before" else plain
    if case.wrap == "shard" and given is None:
        shard(plain, case)
    stepped = more.pop("optimizer", lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    engine = more.pop("engine", None) or PrivacyEngine()
    settings = {"noise_multiplier": case.noise, "max_grad_norm": case.bounds, "sampling": case.sampling} | more
    _, optimizer, loader, *rest = engine.make_private(
        module=model,
        optimizer=stepped(plain.parameters()),
        data_loader=loader_of(case),
        grad_sample_mode=case.mode,
        loss_reduction=case.reduction,
        clipping=case.clipping,
        memory_budget=case.memory_budget,
        **settings,
    )
    if case.wrap == "after":
        model = DistributedDataParallel(plain, **case.ddp)
    criterion = rest[0] if rest else nn.CrossEntropyLoss(reduction=case.reduction)
    return engine, plain, model, optimizer, loader, criterion


def mesh_of(case: Case) -> DeviceMesh:
    world = dist.get_world_size()
    if case.replicas == 1:
        return init_device_mesh("cpu", (world,))
    return init_device_mesh("cpu", (case.replicas, world // case.replicas), mesh_dim_names=("replicate", "shard"))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, Checkpointed):
        return [model.net]
    if isinstance(model, language.Classifier):
        return language.blocks_of(model)
    if isinstance(model, Lent):
        return [model.scale, model.first, model.second] if model.other else [model.first, model.second]
    if isinstance(model, nn.Sequential):
        return [m for m in model if any(True for _ in m.parameters())]
    return [m for m in model.modules() if any(True for _ in m.parameters(recurse=False)) and m is not model]


def shard(model: nn.Module, case: Case) -> None:
    """Spread a model over all processes."""
    mesh, blocks = mesh_of(case), blocks_of(model)
    for block in blocks if case.nested else []:
        fully_shard(block, mesh=mesh, **case.shard)
    fully_shard(model, mesh=mesh, **case.shard)


def last_dimension(parameter: nn.Parameter) -> Shard:
    return Shard(parameter.dim() - 1 if parameter.shape[-1] % 2 == 0 else 0)


def whole(value: Tensor) -> Tensor:
    """A tensor whose parts are spread over processes; all must call it."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def part(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return (value.to_local() if isinstance(value, DTensor) else value).detach().clone()


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
    cut = torch.tensor_split if case.wrap == "shard" else torch.chunk  # sharded, all processes need as many pieces
    parts = list(zip(cut(x, pieces), cut(y, pieces), strict=True))
    for number, (part_x, part_y) in enumerate(parts, 1):
        if case.wrap == "shard":
            model.set_requires_gradient_sync(number == len(parts))
        with nullcontext() if number == len(parts) or case.wrap == "shard" else model.no_sync():
            criterion(model(part_x), part_y).backward()


def gradients(rank: int, world: int, case: Case) -> list[Any]:
    """Train; for each step the records of this process, the weights before it and the released gradient."""
    scaler = GradScaler("cpu", init_scale=2.0 ** (case.scale or 0), enabled=case.scale is not None)
    engine, plain, model, optimizer, loader, criterion = made(case, grad_scaler=scaler)
    steps, rows = [], []
    for x, y, index in batches(case, loader, optimizer):
        optimizer.zero_grad(set_to_none=case.to_none)
        before = {name: whole(p) for name, p in plain.named_parameters()}
        backward(case, model, lambda out, target: scaler.scale(criterion(out, target)), x, y)
        rows += index[: len(index) - engine._attached.session.padding].tolist()
        releases = engine.accountant.steps
        scaler.step(optimizer)
        scaler.update()
        if engine.accountant.steps > releases:
            released = {name: whole(p.grad) for name, p in plain.named_parameters() if p.grad is not None}
            steps.append((rows, before, released))
            rows = []
    return [steps, engine.plan.sampling.expected_batch_size, engine.get_epsilon(1e-5)]


def around(rank: int, world: int, path: str) -> dict[str, Any]:
    """What an engine offers besides training: checks, statistics, checkpoints, detaching."""
    found: dict[str, Any] = {}
    case = Case(noise=1.0, batch=8)
    engine, plain, model, optimizer, loader, _ = made(case)
    x, y, _ = next(iter(loader))
    loss = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])  # noqa: E731
    records = data(30)[:6]
    found["check"] = engine.check(loss, records[:2]).ok
    loss(model, (x, y)).backward()
    optimizer.step()
    every = engine.gather_stats()
    found["stats"] = engine.stats.samples, every.samples, len(every.norms)
    found["clipped"] = int(engine.stats.scaled.sum()), every.fraction_clipped * every.samples
    found["first step"] = engine.first_step.noisy
    if rank == 0:
        engine.save_checkpoint(path, module=model, optimizer=optimizer)
    dist.barrier()
    engine.detach()
    model.zero_grad()
    loss(model, (records[0][:4], records[1][:4])).backward()  # plain training goes on, with DDP's own mean
    found["plain"] = [p.grad.clone() for p in plain.parameters()]

    resumed, fresh, wrapped, optimizer, loader, _ = made(case)
    resumed.load_checkpoint(path, module=wrapped, optimizer=optimizer)
    found["resumed"] = resumed.accountant.steps
    found["same"] = all(torch.equal(p, q) for p, q in zip(plain.parameters(), fresh.parameters(), strict=True))
    for x, y, _ in loader:
        optimizer.zero_grad()
        loss(wrapped, (x, y)).backward()
        optimizer.step()
    found["end"] = resumed.accountant.steps

    model.zero_grad(set_to_none=True)
    again = PrivacyEngine()  # the same DDP object once more
    _, optimizer, loader = again.make_private(
        module=model,
        optimizer=torch.optim.SGD(plain.parameters(), lr=0.5),
        data_loader=loader_of(case),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    x, y, _ = next(iter(loader))
    loss(model, (x, y)).backward()
    optimizer.step()
    found["again"] = again.accountant.steps
    return found


def saves(rank: int, world: int, path: str) -> dict[str, Any]:
    """A sharded run that is saved; what an engine offers besides training; plain training after it."""
    case = Case(wrap="shard", noise=1.0, batch=24 // world)
    engine, plain, model, optimizer, loader, criterion = made(case, optimizer=momentum, noise_generator=seeded())
    found: dict[str, Any] = {}
    for _ in range(2):
        x, y, _ = next(iter(loader))
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    every = engine.gather_stats()
    found["stats"] = engine.stats.samples, every.samples, len(every.norms)
    found["first step"] = engine.first_step.noisy, engine.first_step.moved
    engine.save_checkpoint(path, module=model, optimizer=optimizer)
    found["weights"] = {name: whole(p) for name, p in plain.named_parameters()}
    found["momentum"] = [whole(optimizer.state[p]["momentum_buffer"]) for p in plain.parameters()]
    found["blocks"] = engine._attached.noise._secure.next_block
    engine.detach()
    plain.zero_grad()
    x, y, _ = data(30)[:16]
    criterion(model(x[rank::world]), y[rank::world]).backward()
    found["plain"] = [whole(p.grad) for p in plain.parameters()]  # FSDP's own mean
    plain.zero_grad()
    again, *_ = made(case, plain=plain)
    found["again"] = again.accountant.steps
    return found


def resumes(rank: int, world: int, path: str, wrap: str) -> dict[str, Any]:
    case = Case(wrap=wrap, noise=1.0, batch=24 // world)
    engine, plain, model, optimizer, loader, criterion = made(case, optimizer=momentum, noise_generator=seeded())
    engine.load_checkpoint(path, module=model, optimizer=optimizer)
    found: dict[str, Any] = {
        "weights": {name: whole(p) for name, p in plain.named_parameters()},
        "momentum": [whole(optimizer.state[p]["momentum_buffer"]) for p in plain.parameters()],
        "blocks": engine._attached.noise._secure.next_block,
    }
    x, y, _ = next(iter(loader))
    criterion(model(x), y).backward()
    optimizer.step()
    found["steps"] = engine.accountant.steps
    return found


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def set_up_too_late(rank: int, world: int) -> str:
    dist.destroy_process_group()
    plain = model_of("mlp")
    _, _, loader = PrivacyEngine().make_private(
        module=plain,
        optimizer=torch.optim.SGD(plain.parameters(), lr=0.5),
        data_loader=loader_of(Case()),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    x, _, _ = next(iter(loader))
    try:
        DistributedDataParallel(plain)(x)
    except ConfigurationError as error:
        return str(error)
    return "nothing was raised"


def collectives(rank: int, world: int, case: Case) -> tuple[list[list[str]], list[int]]:
    """Which collectives each step runs, and how many records it has in this process."""
    ran: list[str] = []
    for name in ("all_reduce", "all_gather", "all_gather_object", "broadcast_object_list"):
        setattr(dist, name, _noted(getattr(dist, name), name, ran))
    _, _, model, optimizer, loader, criterion = made(case)
    steps, sizes = [], []
    for x, y, _ in batches(case, loader, optimizer):
        ran.clear()
        optimizer.zero_grad()
        backward(case, model, criterion, x, y)
        optimizer.step()
        steps.append(list(ran))
        sizes.append(len(x))
    return steps, sizes


def _noted(function: Callable[..., Any], name: str, ran: list[str]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        ran.append(name)
        return function(*args, **kwargs)

    return noted


def users(rank: int, world: int) -> tuple[list[Any], float]:
    """Batches of users: for each step who is in it, the weights before it and the released gradient."""
    plain = model_of("mlp")
    model = DistributedDataParallel(plain)
    records = data(30)
    loader = DataLoader(records, batch_size=6)
    sampling = UserPoissonSampling.from_loader(loader, users=torch.arange(30) // 3, most=2)
    engine = PrivacyEngine()
    _, optimizer, private = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(plain.parameters(), lr=0.5),
        data_loader=loader,
        sampling=sampling,
        noise_multiplier=0.0,
        max_grad_norm=BOUND,
    )
    steps = []
    for x, y, index in private:
        optimizer.zero_grad()
        before = {name: p.detach().clone() for name, p in plain.named_parameters()}
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        steps.append((index.tolist(), before, [p.grad.clone() for p in plain.parameters()]))
    return steps, sampling.expected_batch_size


def several(rank: int, world: int, cases: list[Case]) -> list[Any]:
    return [gradients(rank, world, case) for case in cases]


def noise(rank: int, world: int, steps: int, case: Case = Case()) -> tuple[Tensor, float, Tensor]:
    """What is released of gradients that are all zero; and of it, what this process holds."""
    torch.manual_seed(rank if case.wrap == "before" else 0)  # DDP makes weights equal, fully_shard does not
    plain = nn.Linear(40, 25)
    model: Any = plain
    if case.wrap == "shard":
        shard(plain, case)
    else:
        model = DistributedDataParallel(plain)
    engine = PrivacyEngine()
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(plain.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(torch.zeros(30, 40)), batch_size=15),
        noise_multiplier=1.3,
        max_grad_norm=0.7,
        sampling="full-batch",
    )
    released, held = [], []
    for _ in range(steps):
        ((x,),) = loader
        optimizer.zero_grad()
        (model(x) * 0.0).mean().backward()
        optimizer.step()
        released.append(torch.cat([whole(p.grad).flatten().double() for p in plain.parameters()]))
        held.append(torch.cat([part(p.grad).flatten().double() for p in plain.parameters()]))
    return torch.stack(released), 1.3 * 0.7 / engine.plan.sampling.expected_batch_size, torch.stack(held)


def noise_on_gradients(rank: int, world: int, steps: int) -> tuple[Tensor, float]:
    """What is released of the same clipped sum in every step: weights stay as they are."""
    case = Case(noise=1.3, sampling="full-batch", batch=4, records=8)
    torch.manual_seed(0)
    plain = nn.Linear(6, CLASSES).double()
    model = DistributedDataParallel(plain)
    engine = PrivacyEngine()
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(plain.parameters(), lr=0.0),
        data_loader=loader_of(case),
        noise_multiplier=case.noise,
        max_grad_norm=BOUND,
        sampling=case.sampling,
    )
    released = []
    for _ in range(steps):
        ((x, y, _),) = loader
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        released.append(torch.cat([p.grad.flatten() for p in plain.parameters()]))
    return torch.stack(released), case.noise * BOUND / engine.plan.sampling.expected_batch_size


def left_over(rank: int, world: int, ddp: dict[str, Any]) -> list[tuple[float, float]]:
    """Of each of a few steps: the part of numbers in DDP's buckets that are those of the sum, before and after it."""
    case = Case(noise=1.3, sampling="full-batch", records=8, ddp=ddp)
    buckets: list[Tensor] = []
    reduce = _Mean.reduce

    def noted(
        self: _Mean, state: object, bucket: torch._C._distributed_c10d.GradBucket
    ) -> torch.futures.Future[Tensor]:
        buckets.append(bucket.buffer())
        return reduce(self, state, bucket)

    _Mean.reduce = noted
    _engine, plain, model, optimizer, loader, _ = made(case)
    found = []
    for _ in range(4):
        ((x, y, _),) = loader
        optimizer.zero_grad()
        buckets.clear()
        nn.functional.cross_entropy(model(x), y).backward()
        sums = torch.cat([bucket.clone() for bucket in buckets])
        clean = torch.cat([p.grad.flatten() for p in plain.parameters()])
        before = float(torch.isin(sums, clean).double().mean())
        optimizer.step()
        kept = torch.cat(buckets)
        found.append((before, float((torch.isin(kept, clean[clean != 0])).double().mean())))
    return found


def accounts(rank: int, world: int, path: str) -> dict[str, Any]:
    """A run with a ledger, in which another run writes in between; a budget that ends it, and one failure to write."""
    engine, plain, model, optimizer, loader, criterion = made(Case(noise=2.0), ledger=path)
    found: dict[str, Any] = {"path": str(engine.plan and engine._attached.ledger.path)}

    def step() -> None:
        x, y, _ = next(iter(loader))
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    step()
    if rank == 0:
        other = Ledger(path)
        other.begin(records=30, sampler="another", noise="another")
        other.record(PoissonRelease(5.0, 0.5, 1))
        other.close()
    step()
    found["history"] = engine.accountant.history
    found["epsilon"] = engine.get_epsilon(1e-5)
    found["releases"] = engine._attached.ledger.releases
    engine.budget(found["epsilon"] * 1.6, 1e-5)
    found["remaining"] = engine.remaining_steps
    try:
        for _ in range(found["remaining"] + 1):
            step()
    except BudgetError as error:
        found["budget"] = str(error)
    before = [p.detach().clone() for p in plain.parameters()]
    engine.budget(1000.0, 1e-5)
    if rank == 0:
        engine._attached.ledger.close()
    try:
        step()
    except LedgerError as error:
        found["ledger"] = str(error)
    found["unmoved"] = all(torch.equal(p, q) for p, q in zip(plain.parameters(), before, strict=True))
    found["end"] = engine.accountant.steps
    return found


def calibrated(rank: int, world: int) -> tuple[float, float]:
    """The noise for a target, and epsilon after the planned run."""
    plain = model_of("mlp")
    model = DistributedDataParallel(plain)
    engine = PrivacyEngine()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 30 records are few for this δ
        _, optimizer, loader = engine.make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(plain.parameters(), lr=0.1),
            data_loader=loader_of(Case(parted=True)),
            target_epsilon=3.0,
            target_delta=1e-2,
            max_grad_norm=1.0,
            epochs=2,
        )
    for _ in range(2):
        for x, y, _ in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return engine.noise_multiplier, engine.get_epsilon(1e-2)


@dataclass(frozen=True)
class Kill:
    """When a process is killed, in its third step.

    Attributes:
        rank: which process.
        when: "in backward" (with a part of the gradients there), "before the record", or "after the record" (before
            there is noise).
    """

    rank: int
    when: str


def killed(rank: int, world: int, folder: str, kill: Kill) -> dict[str, Any]:
    """A run with a ledger and a checkpoint after its second step, until one process is killed."""
    engine, plain, model, optimizer, loader, criterion = made(Case(noise=2.0), ledger=f"{folder}/ledger")
    found: dict[str, Any] = {"seen": 0}
    try:
        for number, (x, y, _) in enumerate(loader, 1):
            optimizer.zero_grad()
            if number == 3 and rank == kill.rank:
                _prepare(kill.when, engine, plain)
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            found["seen"] = number
            if number == 2 and rank == 0:
                engine.save_checkpoint(f"{folder}/checkpoint", module=model, optimizer=optimizer)
    except RuntimeError as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def _prepare(when: str, engine: PrivacyEngine, plain: Any) -> None:
    """Let this process kill itself at some point of the coming step."""

    def die(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if when == "in backward":
        plain[0].weight.register_hook(die)
    elif when == "before the record":
        engine._attached._release._record = die
    else:
        tacit.step.add_gaussian_noise = die


def resumed(rank: int, world: int, folder: str) -> dict[str, Any]:
    """Start again from the checkpoint, and train for an epoch."""
    engine, _, model, optimizer, loader, criterion = made(Case(noise=2.0), ledger=f"{folder}/ledger")
    engine.load_checkpoint(f"{folder}/checkpoint", module=model, optimizer=optimizer)
    found = {"before": engine.accountant.steps, "epsilon before": engine.get_epsilon(1e-5)}
    for x, y, _ in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    return found | {"after": engine.accountant.steps, "epsilon after": engine.get_epsilon(1e-5)}


def stops(rank: int, world: int, how: str) -> str:
    """Process 1 stops in the second step; what the other says."""
    _, _, model, optimizer, loader, criterion = made(Case(noise=1.0))
    try:
        for number, (x, y, _) in enumerate(loader):
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            if rank and number and how == "in backward":
                raise RuntimeError("out of memory")
            loss.backward()
            if rank and number and how == "in step":
                raise RuntimeError("out of memory")
            if rank and number and how == "hangs":
                time.sleep(9)
                return "slept"
            optimizer.step()
    except RuntimeError as error:
        if rank:
            raise
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"
