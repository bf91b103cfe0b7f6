"""What is refused of models whose parameters are spread over processes; see `situations`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import situations
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scenarios import BOUND, Case, mesh_of, model_of, shard
from situations import Step, attach, words
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tacit import PrivacyEngine
from tacit.errors import PrivacyError

SHARD = Case(wrap="shard")
KEPT = Case(wrap="shard", shard={"reshard_after_forward": False})
COPIED = Case(wrap="shard", replicas=2)


def sharded_too_late(rank: int) -> None:
    step = Step(Case(wrap="after"))
    shard(step.plain, SHARD)
    step.plain(step.x)


def sharded_too_late_inside(rank: int) -> None:
    step = Step(Case(wrap="after"))
    fully_shard(step.plain[0], mesh=mesh_of(SHARD))
    step.plain(step.x)


def a_part_is_sharded(rank: int) -> None:
    plain = model_of("mlp")
    fully_shard(plain[0], mesh=mesh_of(SHARD))
    attach(plain)


def ignored(rank: int) -> None:
    plain = model_of("mlp")
    fully_shard(plain, mesh=mesh_of(SHARD), ignored_params={plain[0].bias})
    attach(plain)


def unfrozen_later(rank: int) -> None:
    """A parameter that is not sharded, and was frozen when the model was made private."""
    plain = model_of("mlp")
    plain[0].bias.requires_grad_(False)
    fully_shard(plain, mesh=mesh_of(SHARD), ignored_params={plain[0].bias})
    attach(plain)
    plain[0].bias.requires_grad_(True)
    plain(torch.zeros(2, 6).double())


def some_of_the_processes(rank: int) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("all", "own"))
    plain = model_of("mlp")
    fully_shard(plain, mesh=mesh["own"])
    attach(plain)


def several_meshes(rank: int) -> None:
    plain = model_of("mlp")
    fully_shard(plain[0], mesh=mesh_of(SHARD))
    fully_shard(plain, mesh=mesh_of(COPIED))
    attach(plain)


def first_version(rank: int) -> None:
    attach(FullyShardedDataParallel(model_of("mlp"), device_id=torch.device("cpu")))


def tensor_parallel(rank: int) -> None:
    plain = model_of("mlp")
    parallelize_module(plain, mesh_of(SHARD), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    attach(plain)


def tensor_parallel_too(rank: int) -> None:
    mesh = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("data", "tensor"))
    plain = model_of("mlp")
    parallelize_module(plain, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(plain, mesh=mesh["data"])
    attach(plain)


def half_precision(rank: int) -> None:
    plain = model_of("mlp").to(torch.bfloat16)
    shard(plain, SHARD)
    attach(plain)


def compiled(rank: int) -> None:
    plain = model_of("mlp")
    shard(plain, SHARD)
    attach(plain, torch.compile(plain))


def compiled_later(rank: int) -> None:
    step = Step(SHARD)
    torch.compile(step.plain, backend="eager")(step.x)


def vectorized(rank: int) -> None:
    Step(Case(wrap="shard", mode="functorch"))


def with_a_budget(rank: int) -> None:
    Step(Case(wrap="shard", memory_budget=10**9))


def unknown_call(rank: int) -> None:
    """A function without a rule, for which the module would run on single samples elsewhere."""
    step = Step(Case(wrap="shard", model="odd"))
    step.plain(step.x)


def handed_out(rank: int) -> None:
    step = Step(Case(wrap="shard", model="lent by another"))
    step.plain(step.x)


def changed_inputs(rank: int) -> None:
    """A hook puts something else in the place of what is derived."""
    step = Step(Case(wrap="shard", model="lent"))
    step.plain.first.register_forward_pre_hook(lambda _, args: (args[0], 2.0 * args[1]))
    step.plain(step.x)


def changed_inputs_and_type(rank: int) -> None:
    step = Step(Case(wrap="shard", model="lent"))
    step.plain.first.register_forward_pre_hook(lambda _, args: (args[0], (2.0 * args[1]).float()))
    step.plain(step.x)


def checked(rank: int) -> None:
    step = Step(SHARD)
    step.engine.check(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), (step.x, step.y))


def saved_by_nobody(rank: int) -> None:
    step = Step(SHARD)
    PrivacyEngine().save_checkpoint("never", module=step.plain, optimizer=step.optimizer)


def saved_nowhere(rank: int) -> None:
    step = Step(SHARD)
    step.engine.save_checkpoint("no/such/folder", module=step.plain, optimizer=step.optimizer)


def loaded_from_nowhere(rank: int) -> None:
    step = Step(SHARD)
    step.engine.load_checkpoint("never", module=step.plain, optimizer=step.optimizer)


def penalty(rank: int) -> None:
    """On a whole weight, which FSDP would have reduced."""
    step = Step(KEPT)
    (step.loss() + step.plain[0].weight.square().sum()).backward()


def used_outside(rank: int) -> None:
    step = Step(KEPT)
    (step.loss() + F.linear(torch.ones(1, 7).double(), step.plain[2].weight).sum()).backward()


def used_before(rank: int) -> None:
    """Its gradient waits in a whole weight, for FSDP to reduce it with the next private backward."""
    step = Step(KEPT)
    step.plain[2].unshard()
    F.linear(torch.ones(1, 7).double(), step.plain[2].weight).sum().backward()
    step.backward().optimizer.step()


def penalty_on_shards(rank: int) -> None:
    step = Step(SHARD)
    loss = step.loss()
    torch.autograd.backward([loss, step.plain[0].weight.square().sum().to_local()])


def in_eval_mode(rank: int) -> None:
    step = Step(SHARD)
    step.plain.eval()
    step.backward()


def scaled_on_the_way(rank: int) -> None:
    step = Step(SHARD)
    step.plain[0].weight.register_hook(lambda gradient: 3.0 * gradient)
    step.backward()


def changed_in_backward(rank: int) -> None:
    """By a hook that was there before the guard's."""
    plain = model_of("mlp")
    shard(plain, SHARD)
    weight = plain[0].weight
    node = get_gradient_edge(weight).node

    def triple(*_: object) -> None:
        weight.grad.to_local().mul_(3.0)

    node.register_hook(triple)
    step = Step(SHARD, plain=plain)
    step.backward().optimizer.step()


def broken_off_in_one(rank: int) -> None:
    """The second pass of one process differs from its first, after its sums have gone to the other."""
    step = Step(Case(wrap="shard", mode="ghost"))
    step.criterion(step.plain(step.x[:1]), step.y[:1]).backward()
    calls: list[int] = []

    def grow(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * 10.0 ** len(calls)

    if rank:
        step.plain[1].register_forward_hook(lambda _, __, out: out.register_hook(grow) and None)
    loss = step.criterion(step.plain(step.x[1:]), step.y[1:])
    try:
        loss.backward()
    except PrivacyError as error:
        assert rank, error  # noqa: PT017
        assert "the second of two passes" in str(error)  # noqa: PT017
    step.optimizer.step()


def clipped_again(rank: int) -> None:
    step = Step(SHARD).backward()
    nn.utils.clip_grad_norm_(step.plain.parameters(), 1e-6)
    step.optimizer.step()


def clipped_again_in_one(rank: int) -> None:
    step = Step(SHARD).backward()
    if rank:
        step.plain[0].weight.grad.to_local().mul_(3.0)
    step.optimizer.step()


def moved_a_little(rank: int) -> None:
    step = Step(SHARD).backward()
    step.plain[0].weight.grad.to_local()[0, 0] += 1e-14
    step.optimizer.step()


def moved_unseen(rank: int) -> None:
    step = Step(SHARD).backward()
    step.plain[0].weight.grad.to_local().data.mul_(3.0)
    step.optimizer.step()


def cleared_in_one(rank: int) -> None:
    step = Step(SHARD).backward()
    if rank == 0:
        step.optimizer.zero_grad()
    step.optimizer.step()


def emptied_in_one(rank: int) -> None:
    step = Step(SHARD).backward()
    if rank == 0:
        for parameter in step.plain.parameters():
            parameter.grad = None
    step.optimizer.step()


def zeroed_in_one(rank: int) -> None:
    step = Step(SHARD).backward()
    if rank == 0:
        for parameter in step.plain.parameters():
            parameter.grad.to_local().zero_()
    step.optimizer.step()


def repeated_in_one(rank: int) -> None:
    situations.repeated_in_one(rank, SHARD)


def frozen_in_one(rank: int) -> None:
    step = Step(SHARD).backward()
    if rank:
        step.plain[2].weight.requires_grad_(False)
    step.optimizer.step()


def bound_changed_in_one(rank: int) -> None:
    step = Step(SHARD).backward()
    if rank:
        step.engine.max_grad_norm = 2 * BOUND
    step.optimizer.step()


def replica_changed_in_one(rank: int) -> None:
    step = Step(COPIED).backward()
    if rank:
        with torch.no_grad():
            step.plain[2].weight.to_local()[0, 0] += 1e-12
    step.optimizer.step()


def rows_again(rank: int) -> None:
    """Also where FSDP casts inputs, and so copies them."""
    _twice(model_of("mlp").float())


def rows_again_behind_a_hook(rank: int) -> None:
    """A hook gives the forward one input more."""
    _twice(Scaled(model_of("mlp").float()))


class Scaled(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_forward_pre_hook(lambda _, args: (*args, torch.ones(())))

    def forward(self, x: Any, scale: Any) -> Any:
        return self.net(x) * scale


def rows_again_after_evaluation(rank: int) -> None:
    """Only the parts are sharded, whose hooks have seen other rows last."""
    plain = model_of("mlp")
    for part in (plain[0], plain[2]):
        fully_shard(part, mesh=mesh_of(SHARD))
    step = Step(SHARD, plain=plain)
    plain.eval()
    plain(torch.randn(5, 6).double())
    plain.train()
    for _ in range(2):
        F.cross_entropy(plain(step.x[:1]), step.y[:1]).backward()


def _twice(plain: nn.Module) -> None:
    fully_shard(plain, mesh=mesh_of(SHARD), mp_policy=_half())
    step = Step(SHARD, plain=plain)
    x = step.x.float()
    for _ in range(2):
        F.cross_entropy(plain(x[:1]).float(), step.y[:1]).backward()


def _half() -> Any:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return MixedPrecisionPolicy(param_dtype=torch.bfloat16)


SHARDED: list[Callable[[int], None]] = [
    sharded_too_late,
    sharded_too_late_inside,
    a_part_is_sharded,
    ignored,
    unfrozen_later,
    some_of_the_processes,
    several_meshes,
    first_version,
    tensor_parallel,
    tensor_parallel_too,
    half_precision,
    compiled,
    compiled_later,
    vectorized,
    with_a_budget,
    unknown_call,
    handed_out,
    changed_inputs,
    checked,
    saved_by_nobody,
    saved_nowhere,
    loaded_from_nowhere,
    penalty,
    used_outside,
    used_before,
    penalty_on_shards,
    in_eval_mode,
    scaled_on_the_way,
    changed_in_backward,
    broken_off_in_one,
    clipped_again,
    clipped_again_in_one,
    moved_a_little,
    moved_unseen,
    cleared_in_one,
    emptied_in_one,
    zeroed_in_one,
    repeated_in_one,
    frozen_in_one,
    bound_changed_in_one,
    replica_changed_in_one,
    rows_again,
    rows_again_behind_a_hook,
    rows_again_after_evaluation,
    changed_inputs_and_type,
]

sharded_words = partial(words, situations=SHARDED)
