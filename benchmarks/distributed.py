"""Private against plain DistributedDataParallel, two processes over gloo: ``python -m benchmarks.distributed``.

Both train on halves of the same batch, in alternating rounds of as many steps; the ratio is the median over the rounds
(see `measure`). Bytes are what this process hands to torch.distributed in one step: DDP's buckets through a
communication hook, and with tacit what processes compare before a release.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from benchmarks.cases import Case
from benchmarks.contestants import LEARNING_RATE, MAX_GRAD_NORM, NOISE_MULTIPLIER, quiet
from benchmarks.registry import BY_NAME
from tacit import PrivacyEngine

CASES = ("mlp", "convnet", "encoder")
PROCESSES = 2

Step = Callable[[], float]
"""Takes a step, and tells its seconds; drawing the batch is not among them."""


class Sent:
    """Counts the bytes of what is summed up and gathered."""

    def __init__(self) -> None:
        self.bytes = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        summed, gathered = dist.all_reduce, dist.all_gather

        def all_reduce(value: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.bytes += value.nbytes
            return summed(value, *args, **kwargs)

        def all_gather(values: list[Tensor], value: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.bytes += value.nbytes
            return gathered(values, value, *args, **kwargs)

        dist.all_reduce, dist.all_gather = all_reduce, all_gather
        try:
            yield
        finally:
            dist.all_reduce, dist.all_gather = summed, gathered


def counted(case: Case, sizes: dict[str, Any], rank: int) -> Step:
    """Plain training whose sums go through Python, where they can be counted."""
    return plain(case, sizes, rank, hook=_mean)


def plain(case: Case, sizes: dict[str, Any], rank: int, hook: Any = None) -> Step:
    model, records = case.make(**sizes)
    ddp = DistributedDataParallel(model)
    if hook is not None:
        ddp.register_comm_hook(None, hook)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=LEARNING_RATE)
    own = Subset(records, range(rank, len(records), PROCESSES))
    loader = DataLoader(own, batch_size=len(own))
    return _step(ddp, optimizer, loader, case)


def private(case: Case, sizes: dict[str, Any], _rank: int) -> Step:
    model, records = case.make(**sizes)
    ddp = DistributedDataParallel(model)
    ddp, optimizer, loader = PrivacyEngine().make_private(
        module=ddp,
        optimizer=torch.optim.SGD(ddp.parameters(), lr=LEARNING_RATE),
        data_loader=DataLoader(records, batch_size=-(-len(records) // PROCESSES)),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=MAX_GRAD_NORM,
    )
    return _step(ddp, optimizer, loader, case)


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


def _process(rank: int, store: str, names: Sequence[str], rounds: int, steps: int, tiny: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    for name in names:
        case = BY_NAME[name]
        sizes = dict(case.tiny) if tiny else {}
        with quiet():
            both = [make(case, sizes, rank) for make in (plain, private)]
            seen = counted(case, sizes, rank)
            for step in (*both, seen):  # warm up: DDP rebuilds its buckets, tacit chooses its ways
                for _ in range(3):
                    step()
            sent = []
            for step in (seen, both[1]):
                counter = Sent()
                with counter.counting():
                    step()
                sent.append(counter.bytes)
            times = [[sum(step() for _ in range(steps)) / steps for step in both] for _ in range(rounds)]
        if rank == 0:
            ratio = median(mine / other for other, mine in times)
            ms = [1000 * median(column) for column in zip(*times, strict=True)]
            print(f"{name:10} {ms[0]:8.1f} ms {ms[1]:8.1f} ms {ratio:6.2f} {sent[0]:12,} {sent[1]:12,}", flush=True)
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__)
    parser.add_argument("--case", nargs="+", choices=list(BY_NAME), default=list(CASES), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="steps of each in a round")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to test the harness")
    given = parser.parse_args(arguments)
    print(f"{'case':10} {'plain':>11} {'private':>11} {'ratio':>6} {'bytes':>12} {'private':>12}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = (f"{folder}/store", given.case, given.rounds, given.steps, given.tiny)
        torch.multiprocessing.spawn(_process, settings, nprocs=PROCESSES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
