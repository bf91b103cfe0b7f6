"""What is refused in several processes; each situation leaves the processes at the same point."""

from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from scenarios import BOUND, Case, made, model_of
from torch import nn
from torch.amp import GradScaler
from torch.autograd.graph import get_gradient_edge
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from tacit import PrivacyEngine, joint


class Step:
    """A run up to its first batch."""

    def __init__(self, case: Case = Case(), **more: Any) -> None:  # noqa: B008
        self.engine, self.plain, self.model, self.optimizer, self.loader, self.criterion = made(case, **more)
        self.batches = iter(self.loader)
        self.x, self.y, _ = next(self.batches)

    def loss(self) -> torch.Tensor:
        return self.criterion(self.model(self.x), self.y)

    def backward(self) -> "Step":
        self.loss().backward()
        return self


def other_noise(rank: int) -> None:
    made(Case(noise=1.0 + rank))


def other_bound(rank: int) -> None:
    made(Case(), max_grad_norm=1.0 + rank)


def other_records(rank: int) -> None:
    made(Case(records=30 + 8 * rank))


def other_reduction(rank: int) -> None:
    made(Case(reduction=("mean", "sum")[rank]))


def other_shapes(rank: int) -> None:
    model = nn.Linear(3 + rank, 2)
    PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters()),
        data_loader=DataLoader(torch.zeros(8, 3)),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )


def other_version(rank: int) -> None:
    joint.version = lambda name: f"0.1.{rank}"
    try:
        made(Case())
    finally:
        joint.version = version


def other_code(rank: int) -> None:
    """The same version, from another state of the sources."""
    before = joint._code
    joint._code = lambda: f"state {rank}"
    try:
        made(Case())
    finally:
        joint._code = before


def other_scale(rank: int) -> None:
    made(Case(), grad_scaler=GradScaler("cpu", init_scale=2.0 ** (10 + rank)))


def scaler_left_out_in_one(rank: int) -> None:
    scaler = GradScaler("cpu", init_scale=2.0**10)
    step = Step(grad_scaler=scaler)
    scaler.scale(step.loss()).backward()
    if rank:
        step.optimizer.step()
    else:
        scaler.step(step.optimizer)


def other_history(rank: int) -> None:
    engine = PrivacyEngine()
    if rank:
        *_, loader, _ = made(Case(), engine=PrivacyEngine())
        engine.accountant.record(loader.sampling.event(1.0, [_draw(loader)]))
    else:
        made(Case(), engine=PrivacyEngine())
    made(Case(), engine=engine)


def _draw(loader: Any) -> Any:
    next(iter(loader))
    return loader.draws.current


def one_is_refused(rank: int) -> None:
    made(Case(mode="ghosts" if rank else "auto"))


def without_wrapper(rank: int) -> None:
    step = Step()
    step.criterion(step.plain(step.x), step.y).backward()
    step.optimizer.step()


def never_averaged(rank: int) -> None:
    step = Step()
    with step.model.no_sync():
        step.backward()
    step.optimizer.step()


def clipped_again(rank: int) -> None:
    step = Step().backward()
    nn.utils.clip_grad_norm_(step.plain.parameters(), 1e-6)
    step.optimizer.step()


def clipped_again_in_one(rank: int) -> None:
    step = Step().backward()
    if rank:
        nn.utils.clip_grad_norm_(step.plain.parameters(), 1e-6)
    step.optimizer.step()


def changed_before_it_leaves(rank: int) -> None:
    """By a hook that stands before DDP's own."""
    case = Case(wrap="after")
    plain = model_of("mlp")
    node = get_gradient_edge(plain[0].weight).node

    def triple(*_: object) -> None:
        plain[0].weight.grad.mul_(3.0)

    node.register_hook(triple)
    step = Step.__new__(Step)
    step.plain, step.model = plain, DistributedDataParallel(plain)
    _, step.optimizer, loader = PrivacyEngine().make_private(
        module=step.model,
        optimizer=torch.optim.SGD(plain.parameters(), lr=0.1),
        data_loader=DataLoader(TENSORS, batch_size=case.batch),
        noise_multiplier=0.0,
        max_grad_norm=BOUND,
    )
    step.x, step.y = next(iter(loader))
    step.criterion = nn.CrossEntropyLoss()
    step.backward().optimizer.step()


TENSORS = torch.utils.data.TensorDataset(torch.ones(16, 6, dtype=torch.float64), torch.zeros(16, dtype=torch.long))


def broken_off(rank: int) -> None:
    """A hook fails when a part of the gradients is there, and the step is made all the same."""
    step = Step()

    def fail(_: torch.Tensor) -> None:
        if any(p.grad is not None for p in step.plain.parameters()):
            raise KeyError("a hook")

    for parameter in step.plain.parameters():
        parameter.register_hook(fail)
    with suppress(KeyError):
        step.backward()
    assert any(p.grad is not None for p in step.plain.parameters())
    step.optimizer.step()


def other_data(rank: int) -> None:
    data = torch.utils.data.Subset(TENSORS, range(rank, 16, 2))
    attach(model_of("mlp"), loader=DataLoader(data, batch_size=4))


def other_tensors(rank: int) -> None:
    data = torch.utils.data.TensorDataset(torch.full((16, 6), float(rank)))
    attach(model_of("mlp"), loader=DataLoader(data, batch_size=4))


def penalty(rank: int) -> None:
    step = Step()
    (step.loss() + step.plain[0].weight.square().sum()).backward()


def bound_changed_in_one(rank: int) -> None:
    step = Step().backward()
    if rank:
        step.engine.max_grad_norm = 2 * BOUND
    step.optimizer.step()


def budget_in_one(rank: int) -> None:
    step = Step(Case(noise=1.0)).backward()
    if rank:
        step.engine.budget(3.0, 1e-5)
    step.optimizer.step()


def weights_changed_in_one(rank: int) -> None:
    step = Step().backward()
    if rank:
        with torch.no_grad():
            step.plain[2].weight[0, 0] += 1e-12
    step.optimizer.step()


def frozen_in_one(rank: int) -> None:
    step = Step().backward()
    if rank:
        step.plain[2].weight.requires_grad_(False)
    step.optimizer.step()


def cleared_in_one(rank: int) -> None:
    """Its release would be noise alone, and the difference of both the clean sum."""
    step = Step().backward()
    if rank == 0:
        step.optimizer.zero_grad()
    step.optimizer.step()


def emptied_in_one(rank: int) -> None:
    step = Step().backward()
    if rank == 0:
        for parameter in step.plain.parameters():
            parameter.grad = None
    step.optimizer.step()


def repeated_in_one(rank: int, case: Case = Case()) -> None:  # noqa: B008
    """One process begins anew and again, and the other keeps what it had from it before."""
    step = Step(case)
    for part in (slice(0, 1), slice(1, None)):
        if rank == 0:
            step.optimizer.zero_grad()
        step.criterion(step.model(step.x[part]), step.y[part]).backward()
    step.optimizer.step()


def compiled_around(rank: int) -> None:
    plain = model_of("mlp")
    attach(plain, torch.compile(DistributedDataParallel(plain)))


def ahead(rank: int) -> None:
    """One process has looked at a batch more."""
    step = Step()
    if rank:
        step.x, step.y, _ = next(step.batches)
    step.backward().optimizer.step()


def compressed(rank: int) -> None:
    plain = model_of("mlp")
    model = DistributedDataParallel(plain)
    model.register_comm_hook(None, fp16_compress_hook)
    attach(plain, model)


def two_wrappers(rank: int) -> None:
    step = Step()
    DistributedDataParallel(step.plain)(step.x)


def part_of_the_processes(rank: int) -> None:
    plain = model_of("mlp")
    groups = [dist.new_group([number]) for number in range(dist.get_world_size())]
    attach(plain, DistributedDataParallel(plain, process_group=groups[rank]))


def part_of_the_model(rank: int) -> None:
    step = Step(Case(wrap="after"))
    DistributedDataParallel(step.plain[0])(step.x)


def not_stepped(rank: int) -> None:
    plain = model_of("mlp")
    attach(plain, DistributedDataParallel(plain), torch.optim.SGD(plain[0].parameters()))


def half_precision(rank: int) -> None:
    plain = model_of("mlp").to(torch.bfloat16)
    attach(plain, DistributedDataParallel(plain))


def attach(plain: nn.Module, model: Any = None, optimizer: Any = None, loader: Any = None) -> None:
    PrivacyEngine().make_private(
        module=plain if model is None else model,
        optimizer=optimizer or torch.optim.SGD(plain.parameters()),
        data_loader=loader or DataLoader(TENSORS, batch_size=4),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )


def ghost_and_static_graph(rank: int) -> None:
    made(Case(mode="ghost", ddp={"static_graph": True}))


def static_graph_without_sync(rank: int) -> None:
    step = Step(Case(ddp={"static_graph": True}))
    with step.model.no_sync():
        step.backward()


def sampler_of_others(rank: int) -> None:
    sampler = DistributedSampler(TENSORS, num_replicas=3, rank=rank)
    attach(model_of("mlp"), loader=DataLoader(TENSORS, sampler=sampler))


def sampler_of_a_part(rank: int) -> None:
    part = torch.utils.data.Subset(TENSORS, range(rank, 16, 2))
    attach(model_of("mlp"), loader=DataLoader(part, sampler=DistributedSampler(TENSORS)))


SITUATIONS: list[Callable[[int], None]] = [
    other_noise,
    other_bound,
    other_records,
    other_reduction,
    other_shapes,
    other_version,
    other_code,
    other_scale,
    scaler_left_out_in_one,
    other_history,
    one_is_refused,
    without_wrapper,
    never_averaged,
    clipped_again,
    clipped_again_in_one,
    changed_before_it_leaves,
    broken_off,
    other_data,
    other_tensors,
    penalty,
    bound_changed_in_one,
    budget_in_one,
    weights_changed_in_one,
    frozen_in_one,
    cleared_in_one,
    emptied_in_one,
    repeated_in_one,
    compiled_around,
    ahead,
    compressed,
    two_wrappers,
    part_of_the_processes,
    part_of_the_model,
    not_stepped,
    half_precision,
    ghost_and_static_graph,
    static_graph_without_sync,
    sampler_of_others,
    sampler_of_a_part,
]


def words(rank: int, world: int, situations: list[Callable[[int], None]] = SITUATIONS) -> dict[str, str]:
    """What each situation raises, in words."""
    found = {}
    for situation in situations:
        try:
            situation(rank)
        except Exception as error:  # noqa: BLE001  whatever it is, the test looks at it
            found[situation.__name__] = f"{type(error).__name__}: {error}"
        else:
            found[situation.__name__] = "nothing was raised"
        dist.barrier()
    return found
