"""Private against plain training in two processes over gloo: ``python -m benchmarks.distributed``.

With DistributedDataParallel, or with fully_shard (``--fsdp``). Both train on halves of the same batch, in alternating
rounds of as many steps; the ratio is the median over the rounds (see `measure`). Bytes are what this process hands to
torch.distributed in one step: DDP's buckets through a communication hook, or the shards that it sends to others and the
gradients that are summed up; and with tacit what processes compare before a release. Memory is what a few steps raise
the peak of each process by, above what is there before the first, plain and private in processes of their own; what
they import and compile, once, is there before (with Numba 60 to 100 MB).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Subset

from benchmarks.cases import Case
from benchmarks.contestants import LEARNING_RATE, MAX_GRAD_NORM, NOISE_MULTIPLIER, quiet
from benchmarks.memory import STEPS, peak, resident
from benchmarks.registry import BY_NAME
from tacit import PrivacyEngine

CASES = ("mlp", "convnet", "encoder")
PROCESSES = 2

Step = Callable[[], float]
"""Takes a step, and tells its seconds; drawing the batch is not among them."""


class Sent(TorchDispatchMode):
    """Counts the bytes of what is summed up and gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func.name().split("::")
        if namespace == "c10d" and not name.startswith(("barrier", "monitored")):
            given = args[1] if "gather" in name or "scatter" in name else args[0]  # or else the outputs
            self.bytes += sum(value.nbytes for value in tree_leaves(given))
        elif namespace == "_c10d_functional" and name.startswith(("reduce_scatter", "all_")):
            self.bytes += args[0].nbytes
        return func(*args, **(kwargs or {}))


def counted(case: Case, sizes: dict[str, Any], rank: int, fsdp: bool) -> Step:
    """Plain training whose sums go through Python, where they can be counted."""
    return plain(case, sizes, rank, fsdp, hook=_mean)


def plain(case: Case, sizes: dict[str, Any], rank: int, fsdp: bool, hook: Any = None) -> Step:
    model, records = case.make(**sizes)
    model = sharded(model) if fsdp else DistributedDataParallel(model)
    if hook is not None and not fsdp:
        model.register_comm_hook(None, hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    own = Subset(records, range(rank, len(records), PROCESSES))
    loader = DataLoader(own, batch_size=len(own))
    return _step(model, optimizer, loader, case)


def private(case: Case, sizes: dict[str, Any], _rank: int, fsdp: bool) -> Step:
    model, records = case.make(**sizes)
    model = sharded(model) if fsdp else DistributedDataParallel(model)
    model, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
        data_loader=DataLoader(records, batch_size=-(-len(records) // PROCESSES)),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=MAX_GRAD_NORM,
    )
    return _step(model, optimizer, loader, case)


def sharded(model: nn.Module) -> nn.Module:
    """Spread a model over the processes: each block of a stack, and the rest."""
    mesh = init_device_mesh("cpu", (PROCESSES,))
    stacks = [part for part in model.modules() if isinstance(part, (nn.Sequential, nn.ModuleList))]
    blocks = [block for stack in stacks for block in stack if any(True for _ in block.parameters())]
    for block in reversed(blocks):  # what is inside first
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _mean(_state, bucket):
    # DDP looks at annotations, and wants no strings.
    work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def _step(model: nn.Module, optimizer: Any, loader: Any, case: Case) -> Step:
    def step() -> float:
        inputs, labels = next(iter(loader))
        dist.barrier()
        start = time.perf_counter()
        optimizer.zero_grad()
        case.criterion(model(inputs), labels).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def _process(rank: int, folder: str, name: str, rounds: int, steps: int, tiny: bool, fsdp: bool) -> None:
    _join(rank, folder, "times")
    _leave(rank, folder, "times", _times(*_case(name, tiny), rank, rounds, steps, fsdp))


def _times(case: Case, sizes: dict[str, Any], rank: int, rounds: int, steps: int, fsdp: bool) -> list[float]:
    """Time of the plain and the private step in alternation, and their bytes."""
    with quiet():
        both = [make(case, sizes, rank, fsdp) for make in (plain, private)]
        seen = counted(case, sizes, rank, fsdp)
        for step in (*both, seen):  # warm up: DDP rebuilds its buckets, tacit chooses its ways
            for _ in range(3):
                step()
        sent = []
        for step in (seen, both[1]):
            with Sent() as counter:
                step()
            sent.append(counter.bytes)
        times = [[sum(step() for _ in range(steps)) / steps for step in both] for _ in range(rounds)]
    ratio = median(mine / other for other, mine in times)
    ms = [1000 * median(column) for column in zip(*times, strict=True)]
    return [*ms, ratio, *sent]


def _memory(rank: int, folder: str, name: str, tiny: bool, fsdp: bool, which: str) -> None:
    _join(rank, folder, which)
    make = {"plain": plain, "private": private}[which]
    _leave(rank, folder, which, _raised_peak(lambda: make(*_case(name, tiny), rank, fsdp)))


def _raised_peak(make: Callable[[], Step]) -> int:
    """By how many bytes a few steps of one contestant raise the peak of this process."""
    with quiet():
        make()()  # imports and compiles what is needed once
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        step = make()
        dist.barrier()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident()
        for _ in range(STEPS):
            step()
        return peak() - before


def _case(name: str, tiny: bool) -> tuple[Case, dict[str, Any]]:
    return BY_NAME[name], dict(BY_NAME[name].tiny) if tiny else {}


def _join(rank: int, folder: str, what: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store of {what}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)


def _leave(rank: int, folder: str, what: str, found: Any) -> None:
    """Once no model is left: DDP's destructor, as the last that holds the group, would wait for gloo's threads and not
    let go of the interpreter, which these need to let go of a barrier."""
    gc.collect()
    Path(folder, f"{what} {rank}").write_text(json.dumps(found))
    dist.barrier()  # who leaves first ends the others' connections
    dist.destroy_process_group()


def _all(function: Any, folder: str, what: str, limit: float, *settings: Any) -> list[Any]:
    """What each of the processes found; those that have not ended after so many seconds are killed, and it is said."""
    together = torch.multiprocessing.spawn(function, (folder, *settings), nprocs=PROCESSES, join=False)
    end = time.monotonic() + limit
    while not together.join(timeout=1.0):
        if time.monotonic() > end:
            for process in together.processes:
                process.kill()
                process.join()
            raise TimeoutError(f"{what}: the processes have not ended after {limit:.0f} seconds")
    return [json.loads(Path(folder, f"{what} {rank}").read_text()) for rank in range(PROCESSES)]


def row(name: str, given: argparse.Namespace) -> str:
    """All of one case."""
    with tempfile.TemporaryDirectory() as folder:
        settings = (name, given.rounds, given.steps, given.tiny, given.fsdp)
        ms, private_ms, ratio, sent, sent_privately = _all(_process, folder, "times", given.limit, *settings)[0]
        plainly, privately = (
            "/".join(
                f"{found / 1e6:.0f}"
                for found in _all(_memory, folder, which, given.limit, name, given.tiny, given.fsdp, which)
            )
            for which in ("plain", "private")
        )
    times = f"{ms:8.1f} ms {private_ms:8.1f} ms {ratio:6.2f}"
    return f"{name:10} {times} {sent:12,} {sent_privately:12,} {plainly:>9} {privately:>9}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__)
    parser.add_argument("--case", nargs="+", choices=list(BY_NAME), default=list(CASES), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="steps of each in a round")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to test the harness")
    parser.add_argument("--fsdp", action="store_true", help="fully_shard instead of DistributedDataParallel")
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which processes are killed")
    given = parser.parse_args(arguments)
    head = f"{'case':10} {'plain':>11} {'private':>11} {'ratio':>6} {'bytes':>12} {'private':>12}"
    print(f"{head} {'MB':>9} {'private':>9}", flush=True)
    for name in given.case:
        print(row(name, given), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
