"""The processes that train together, as one of them sees them: what they compare, share and wait for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tacit.distributed.world import is_set_up, rank, world_size
from tacit.errors import DistributedError, TacitError

T = TypeVar("T")

Facts = dict[str, str]
"""What is compared, by name."""

_MOST_SHOWN = 8


class Group:
    """All processes of the default process group, or this one alone.

    Every method that speaks of all processes is a collective: each must call it, in the same order. Alone, they cost
    nothing.

    Args:
        device: where the model is; numbers that are compared lie there, if the group cannot send from the CPU.
        alone: leave the others out.

    Attributes:
        rank: the number of this process.
        count: how many there are.
        is_set_up: there is a process group, if only of one process.
        shard: which shard of sharded parameters this process holds; others that hold the same have the same number.
            None where each process holds all.
    """

    def __init__(self, device: torch.device | None = None, *, alone: bool = False) -> None:
        self.is_set_up = is_set_up() and not alone
        self.rank = 0 if alone else rank()
        self.count = 1 if alone else world_size()
        on_cpu = device is None or not self.is_set_up or "cpu:" in dist.get_backend_config()
        self._device = torch.device("cpu") if device is None or on_cpu else device
        self.shard: int | None = None

    def together(
        self,
        prepare: Callable[[], T],
        facts: Callable[[T], Mapping[str, object]],
        own: Callable[[], Mapping[str, object]] = dict,
    ) -> T:
        """Prepare something in each process, and go on only if all could, and found the same facts.

        Args:
            prepare: run here; what it raises stops all processes.
            facts: of what was prepared, by name: compared by their ``repr``.
            own: facts that need be the same only in processes that hold the same shard.

        Returns:
            What ``prepare`` returned.

        Raises:
            DistributedError: another process failed, or facts differ; in each process, and with the same words.
        """
        if self.count == 1:
            return prepare()
        try:
            prepared = prepare()
            found, of_shard = _written(facts(prepared)), _written(own())
        except Exception as error:
            self._compare({}, {}, f"{type(error).__name__}: {error}", where=error)
            raise
        self._compare(found, of_shard, None)
        return prepared

    def from_first(self, make: Callable[[], T]) -> T:
        """Let process 0 make something, and give it to all.

        Raises:
            TacitError: what ``make`` raised, in each process.
        """
        if self.count == 1:
            return make()
        sent: list[Any] = [None, None]
        failure: Exception | None = None
        if self.rank == 0:
            try:
                sent = [make(), None]
            except Exception as error:
                failure = error
                words = f"process 0 failed with {type(error).__name__}: {error}"
                sent = [None, error if isinstance(error, TacitError) else DistributedError(words)]
                self._broadcast(sent)
                raise
        self._broadcast(sent)
        made, failure = sent
        if failure is not None:
            raise failure
        return made  # type: ignore[no-any-return]

    def gathered(self, value: T) -> list[T]:
        """What each process has for ``value``, in their order."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with explained():
            dist.all_gather_object(found, value)
        return found

    def _broadcast(self, sent: list[Any]) -> None:
        with explained():
            dist.broadcast_object_list(sent, src=0)

    def _compare(self, facts: Facts, of_shard: Facts, failure: str | None, where: Exception | None = None) -> None:
        """Compare digests; only if they differ, everything is sent."""
        if self.shard is None:
            facts, of_shard = {**facts, **of_shard}, {}
        numbers = [int(failure is not None), _digest(facts)]
        numbers += [] if self.shard is None else [self.shard, _digest(of_shard)]
        try:
            seen = exchanged(numbers, self._device)
        except DistributedError:
            if where is not None:  # its own error says more
                return
            raise
        shards = {tuple(one[2:3]) for one in seen}
        if all(one[:2] == [0, seen[0][1]] for one in seen) and len({tuple(one[2:]) for one in seen}) == len(shards):
            return
        everything = self.gathered((failure, facts, self.shard, of_shard))
        if failure is None:
            raise DistributedError(_difference(everything))


def exchanged(numbers: Sequence[int], device: torch.device) -> list[list[int]]:
    """What each process of the default group has for ``numbers`` (as many in each), in their order.

    Raises:
        DistributedError: another process did not take part.
    """
    mine = torch.tensor(numbers, dtype=torch.int64, device=device)
    every = [torch.empty_like(mine) for _ in range(world_size())]
    with explained():
        dist.all_gather(every, mine)
    found: list[list[int]] = torch.stack(every).tolist()
    return found


def _written(facts: Mapping[str, object]) -> Facts:
    return {name: repr(value) for name, value in facts.items()}


def _digest(facts: Facts) -> int:
    digest = hashlib.sha256(repr(sorted(facts.items())).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _difference(everything: list[tuple[str | None, Facts, int | None, Facts]]) -> str:
    """Say which process failed, or how facts differ."""
    failures = [one[0] for one in everything]
    failed = [f"process {number} stopped ({words})" for number, words in enumerate(failures) if words is not None]
    if failed:
        return f"{'; '.join(failed)}. The others stop with it: what one leaves out, no other can make up for."
    differing = _differing({number: facts for number, (_, facts, _, _) in enumerate(everything)})
    for shard in dict.fromkeys(shard for _, _, shard, _ in everything):
        holders = {number: own for number, (_, _, of, own) in enumerate(everything) if of == shard}
        differing += _differing(holders)
    return (
        f"the processes do not train the same way ({'; '.join(differing)}). Each adds its part of one batch, and all "
        "add the same noise, so epsilon would not hold. Give every process the same program, data and settings."
    )


def _differing(facts: Mapping[int, Facts]) -> list[str]:
    """The facts that are not the same in all of these processes, in words."""
    found = []
    for name in dict.fromkeys(name for one in facts.values() for name in one):
        values: dict[str, list[int]] = {}
        for number, one in facts.items():
            values.setdefault(one.get(name, "nothing"), []).append(number)
        if len(values) > 1:
            shown = ", ".join(f"{value} in {_numbers(places)}" for value, places in values.items())
            found.append(f"{name}: {shown}")
    return found


def _numbers(places: list[int]) -> str:
    more = f" and {len(places) - _MOST_SHOWN} more" if len(places) > _MOST_SHOWN else ""
    return f"process {', '.join(map(str, places[:_MOST_SHOWN]))}{more}"


@contextmanager
def explained() -> Iterator[None]:
    """Say what it means that a collective failed: torch's own words are of sockets."""
    try:
        yield
    except TacitError:
        raise
    except RuntimeError as error:
        raise DistributedError(
            "another process did not come to this point: it has stopped with an error of its own, or waits elsewhere, "
            "until the timeout of the process group passed. Nothing was released here since. Look at the first error "
            f"of the other processes, and start all of them again. ({str(error).splitlines()[0]})"
        ) from error
