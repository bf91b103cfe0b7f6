"""Run a function in several processes over gloo, each of which ends by itself."""

import datetime
import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# A clean process is forked for each rank: one that has imported everything and never ran a backward.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch._dynamo", "torch.distributed.fsdp", "tacit.engine", "scenarios"])


def _start_server() -> None:
    """Where it looks for modules is what the environment says, not what this process has put on its path."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class Failed(Exception):  # noqa: N818
    """A process raised; its words are the message."""


def together(world: int, function: Callable[..., Any], *args: Any, timeout: float = 30.0) -> list[Any]:
    """What ``function(rank, world, *args)`` returns in each process; an exception is returned as ``Failed``."""
    _start_server()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            CONTEXT.Process(target=_one, args=(rank, world, folder, timeout, function, args), daemon=True)
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(2 * timeout + 20)
        late = [process for process in processes if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        assert not late, f"{len(late)} processes did not end"
        return [_result(Path(folder) / str(rank), process) for rank, process in enumerate(processes)]


def _result(path: Path, process: Any) -> Any:
    if process.exitcode < 0:  # by a signal: it had no time to say anything
        return Failed(f"signal {-process.exitcode}")
    return pickle.loads(path.read_bytes())


def results(world: int, function: Callable[..., Any], *args: Any, timeout: float = 30.0) -> list[Any]:
    """The same, for functions that must not raise."""
    found = together(world, function, *args, timeout=timeout)
    for one in found:
        if isinstance(one, Failed):
            raise one
    return found


def _one(rank: int, world: int, folder: str, timeout: float, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=timeout),
        )
        result = function(rank, world, *args)
    except Exception as error:  # noqa: BLE001  it is handed on
        result = Failed(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(result))
    if not isinstance(result, Failed):
        dist.destroy_process_group()
