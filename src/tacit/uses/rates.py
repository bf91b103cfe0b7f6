"""The rates of a device, measured by a few processes and kept on disk.

Nothing here decides a result beyond rounding. With ``torch.use_deterministic_algorithms(True)`` nothing is measured.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, astuple
from functools import cache, partial
from pathlib import Path

import torch

from tacit.timing import quickest
from tacit.uses.cost import DEFAULT_COSTS, MAPPED, CostModel
from tacit.uses.numerics import sample_squares

_RUNS = 5

_PROCESSES = 5
"""So many processes measure, and the best of each rate counts: on a busy machine one measurement may be far off."""

_TIMES = "measured"

_SMALL, _LARGE = 2**19, 2**24
"""Numbers in a block that a cache holds, and in one that none does."""


def costs_of(device: torch.device, dtype: torch.dtype) -> CostModel:
    """The rates of a device for numbers of this type."""
    if torch.are_deterministic_algorithms_enabled() or device.type not in ("cpu", "cuda"):
        return DEFAULT_COSTS
    return _costs_of(device, dtype, torch.get_num_threads())


@cache
def _costs_of(device: torch.device, dtype: torch.dtype, threads: int) -> CostModel:
    path = cache_folder() / "rates.json"
    key = f"{device_name(device)}, {threads} threads, {dtype}, torch {torch.__version__}"
    known = _read(path)
    times, best = known.get(key, (0, None))
    if best is not None and times >= _PROCESSES:
        return best
    found = measured(device, dtype)
    if best is not None:
        found = CostModel(*map(max, astuple(found), astuple(best)))
    _write(path, {**known, key: (times + 1, found)})
    return found


def measured(device: torch.device, dtype: torch.dtype) -> CostModel:
    """Time a batched product and two blocks of memory; it takes about 50 ms on a CPU."""
    a = torch.ones((8, 256, 256), device=device, dtype=dtype)
    product = torch.empty_like(a)
    flops = 2 * 8 * 256**3 / quickest(lambda: torch.bmm(a, a, out=product), _RUNS, device)
    rates = {}
    for count in (_SMALL, _LARGE):
        block = torch.ones((8, count // 8), device=device, dtype=dtype)
        rates[count] = block.nbytes / quickest(partial(sample_squares, block), _RUNS, device)
    mapped = 2 * MAPPED
    seconds = quickest(lambda: torch.empty(mapped, dtype=torch.uint8, device=device).zero_(), _RUNS, device)
    return CostModel(flops, max(rates.values()), rates[_LARGE], DEFAULT_COSTS.cache, mapped / seconds)


def cache_folder() -> Path:
    """Where measured rates are kept: ``$XDG_CACHE_HOME/tacit``, by default ``~/.cache/tacit``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tacit"


def device_name(device: torch.device) -> str:
    """What a processor or a GPU calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> dict[str, tuple[int, CostModel]]:
    """How often each was measured, and the rates; nothing if the file is missing or torn: then it is measured again."""
    try:
        known: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
        return {key: (int(values.pop(_TIMES)), CostModel(**values)) for key, values in known.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _write(path: Path, known: dict[str, tuple[int, CostModel]]) -> None:
    """A folder that cannot be written costs the next process 50 ms."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        content = {key: {_TIMES: times, **asdict(costs)} for key, (times, costs) in known.items()}
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        return
