"""One run of several processes: what they compare before it, and before each release."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from tacit.accounting import Accountant, Release
from tacit.accounting.events import counted
from tacit.capture import looked_at
from tacit.distributed import Group, Sharding, Spread, local
from tacit.entropy import KEY_BYTES, derived, drawn_key
from tacit.errors import ConfigurationError
from tacit.ledger import Ledger
from tacit.ledger_copy import Book, LedgerCopy
from tacit.mechanisms import maker
from tacit.plan import PrivacyPlan

_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def plan_facts(plan: PrivacyPlan) -> dict[str, object]:
    """What decides ε, by name."""
    sampling = plan.sampling
    return {
        **plan.facts,
        "number of records": sampling.records,
        "expected batch size": sampling.expected_batch_size,
        "batches per epoch": sampling.steps_per_epoch,
    }


def run_facts(accountant: Accountant, parameters: Mapping[str, nn.Parameter]) -> dict[str, object]:
    """What else must be the same in all processes before a run begins, by name."""
    shapes = {f"parameter {name!r}": _form(p) for name, p in parameters.items()}
    return {
        "version of tacit": version("tacit"),
        "code of tacit": _code(),
        "version of torch": torch.__version__,
        # What makes the noise:
        "vector functions of the processor": torch.backends.cpu.get_cpu_capability(),
        "maker of noise on the CPU": maker(),
        "accountant": (accountant.mechanism(), accountant.wanted_adjacency),
        "releases so far": sorted(map(repr, counted(accountant.history).items())),
        "private parameters": len(parameters),
        **shapes,
    }


@lru_cache(maxsize=1)
def _code() -> str:
    """A digest of this package's sources: of one version there may be several states."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _form(parameter: nn.Parameter) -> tuple[object, ...]:
    spread = Spread.of(parameter)
    form = (tuple(parameter.shape), parameter.dtype, parameter.requires_grad)
    return form if spread is None else (*form, spread)


def data_facts(dataset: object) -> dict[str, object]:
    """What is easily told of a data set: enough to find that processes have different parts of one.

    Of all other kinds only the number of records is compared; see docs/distributed.md.
    """
    if isinstance(dataset, Subset):
        indices = hashlib.sha256(repr(list(dataset.indices)).encode()).hexdigest()[:16]
        return {"indices of the Subset": indices, **data_facts(dataset.dataset)}
    if isinstance(dataset, TensorDataset):
        return {f"tensor {place} of the data set": _digest(one) for place, one in enumerate(dataset.tensors)}
    return {"kind of data set": type(dataset).__qualname__}


def _digest(value: Tensor) -> str:
    """Of a large tensor about 2¹⁶ numbers, evenly spread."""
    flat = value.detach().reshape(-1)
    some = flat[:: max(1, flat.numel() // 2**16)].cpu().contiguous()
    content = some.view(torch.uint8).numpy().tobytes() if some.numel() else b""
    return f"{tuple(value.shape)} {value.dtype} {hashlib.sha256(content).hexdigest()[:16]}"


def shared_key(group: Group, generator: torch.Generator | None) -> bytes | None:
    """A secret that all processes know, and nobody else; None for one process alone.

    Process 0 draws it and sends it to the others as they are connected: who can listen to that, or looks into the
    memory of any of them, knows the noise. All draw, so that equal generators stay equal.
    """
    if group.count == 1:
        return None
    mine = drawn_key(generator)
    return group.from_first(lambda: mine)


def noise_key(shared: bytes | None, sharding: Sharding | None) -> bytes | None:
    """The key that a process makes its noise from: of all that hold the same shard the same, of others another."""
    if shared is None or sharding is None:
        return shared
    return derived(shared, f"noise of shard {sharding.shard} of {sharding.shards}", KEY_BYTES)


def open_ledger(
    ledger: str | Path | Ledger | None, accountant: Accountant, known: Path | None, group: Group
) -> Book | None:
    """Open a ledger, in process 0; the accountants then know of all that is in it.

    Args:
        ledger: the file, or the ledger.
        accountant: what this engine knows of.
        known: the file that its releases are in.
        group: the processes.
    """
    if ledger is None:
        return None
    opened: list[Ledger] = []

    def first() -> tuple[Path, list[tuple[Release, int]]]:
        book = ledger.again() if isinstance(ledger, Ledger) else Ledger(ledger)
        path, history = book.path.resolve(), book.history()
        missing = counted(accountant.history) - counted(history)
        if accountant.steps and (known != path or missing):
            raise ConfigurationError(
                f"this engine has made {accountant.steps} releases, of which some are not in {book.path}: its "
                "epsilon would leave them out. Use a new PrivacyEngine, or the ledger from the first run on."
            )
        opened.append(book)
        return path, history

    path, history = group.from_first(first)
    accountant.replace(history)
    return opened[0] if opened else LedgerCopy(path, history)


@dataclass
class Since:
    """What happened since the last release. Where it differs, the mean has some process's records twice, or unbounded.

    (How many backwards there were may differ: parts of a batch are split as they come.)

    Attributes:
        fresh: how many backwards found no gradients.
        cleared: how often pending gradients were thrown away.
    """

    fresh: int = 0
    cleared: int = 0


class Checksums:
    """Sums over the bits of parameters: equal where the parameters are, to the last bit.

    All are looked at in the first step, then one in each: processes that have drifted apart do not train on unnoticed.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._steps = 0

    def facts(self) -> dict[str, object]:
        names = list(self._parameters)
        if self._steps:
            names = [names[self._steps % len(names)]]
        self._steps += 1
        return {f"bits of the parameter {name!r}": _checksum(self._parameters[name]) for name in names}


def pending_facts(parameters: Mapping[str, nn.Parameter]) -> dict[str, object]:
    """For which parameters a gradient is pending: in all processes, unless one has cleared its own."""
    return {
        f"gradient of {name!r}": "none" if p.grad is None else "there"
        for name, p in parameters.items()
        if p.requires_grad
    }


def gradient_facts(parameters: Mapping[str, nn.Parameter]) -> dict[str, object]:
    """What is pending, by parameter: equal in all processes that hold the same, unless one has cleared its own.

    It is the mean over all processes, or a shard of the sum. Of a large gradient a part may be looked at, to
    the last bit.
    """
    return {
        f"bits of the gradient of {name!r}": "none" if p.grad is None else _checksum(_seen(p.grad))
        for name, p in parameters.items()
        if p.requires_grad
    }


def _seen(gradient: Tensor) -> Tensor:
    (seen,) = looked_at(local(gradient).reshape(-1))
    return seen


def _checksum(value: Tensor) -> int:
    here = local(value).detach()
    return int(here.view(_OF_SIZE[here.dtype.itemsize]).sum(dtype=torch.int64))
