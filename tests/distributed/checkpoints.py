"""Runs that are saved by all processes and resumed by others; see `test_checkpoints`."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from scenarios import Case, made, model_of, seeded, shard, whole
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from tacit import PrivacyEngine
from tacit.errors import TacitError

BATCH = 24  # of all processes


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.05)


def case_of(world: int, wrap: str, **more: Any) -> Case:
    """A run of the same batches whatever the number of processes; one process alone needs no wrapper."""
    return Case(wrap="alone" if world == 1 and wrap != "shard" else wrap, noise=1.0, batch=BATCH // world, **more)


def train(run: tuple[Any, ...], steps: int) -> None:
    _, _, model, optimizer, loader, criterion = run
    for _ in range(steps):
        x, y, _ = next(iter(loader))
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()


def state_of(run: tuple[Any, ...]) -> dict[str, Any]:
    """Everything of a run that all processes have together."""
    engine, plain, _, optimizer, *_ = run
    states = {name: optimizer.state[p] for name, p in plain.named_parameters()}
    return {
        "weights": {name: whole(p) for name, p in plain.named_parameters()},
        "adam": {name: {key: whole(value) for key, value in state.items()} for name, state in states.items()},
        "steps": engine.accountant.steps,
        "epsilon": engine.get_epsilon(1e-5),
        "blocks": engine._attached.noise._secure.next_block,
    }


def begun(case: Case, given: bool = False, **more: Any) -> tuple[Any, ...]:
    """A run whose model has buffers; ``given``: with noise that can be made again."""
    run = made(case, optimizer=adam, **({"noise_generator": seeded()} if given else {}), **more)
    for name in ("seen", "heard"):  # each process has others
        run[1].register_buffer(name, torch.full((99,), float(dist.get_rank())))
    return run


def saves(rank: int, world: int, path: str, case: Case, more: dict[str, Any], after: int = 0) -> dict[str, Any]:
    """Two steps, a checkpoint, and ``after`` steps that are not in it."""
    run = begun(case, **more)
    engine, plain, _, optimizer, *_ = run
    train(run, 2)
    engine.save_checkpoint(path, module=plain, optimizer=optimizer, sharded=True)
    found = state_of(run)
    train(run, after)
    return found | {"later": state_of(run)}


def resumes(rank: int, world: int, path: str, case: Case, more: dict[str, Any]) -> dict[str, Any]:
    """The same run goes on, three steps."""
    run = begun(case, **more)
    engine, plain, model, optimizer, *_ = run
    engine.load_checkpoint(path, module=model, optimizer=optimizer)
    found = state_of(run) | {"buffers": {*plain.seen.tolist(), *plain.heard.tolist()}}
    train(run, 3)
    return found | {"later": state_of(run)}


def own(rank: int, world: int, path: str) -> list[dict[str, Any]]:
    """A user's own checkpoint of a sharded model, by torch's tools: saved, and resumed in the same processes."""
    case = case_of(world, "shard")
    run = made(case, optimizer=adam)
    engine, plain, _, optimizer, *_ = run
    train(run, 2)
    model, inner = get_state_dict(plain, optimizer)
    dcp.save({"model": model, "optimizer": inner, "engine": engine}, checkpoint_id=path)

    fresh = model_of(case.model, seed=7)
    shard(fresh, case)
    stepped = adam(fresh.parameters())
    model, inner = get_state_dict(fresh, stepped)  # before make_private(): it steps a new optimizer for its states
    dcp.load({"model": model, "optimizer": inner}, checkpoint_id=path)
    set_state_dict(fresh, stepped, model_state_dict=model, optim_state_dict=inner)
    again = made(case, plain=fresh, optimizer=lambda _: stepped)
    dcp.load({"engine": again[0]}, checkpoint_id=path)
    return [state_of(run), state_of(again)]


def failing(rank: int, world: int, folder: str, wrap: str) -> dict[str, str]:
    """What goes wrong in process 1 alone, or with its files; words of each process."""
    run = made(case_of(world, wrap), optimizer=adam)
    engine, plain, model, optimizer, *_ = run
    train(run, 1)
    path = Path(folder) / "run"

    def words(action: Any) -> str:
        try:
            action()
        except TacitError as error:
            return f"{type(error).__name__}: {error}"
        return "nothing was raised"

    def save(place: Any = path) -> None:
        engine.save_checkpoint(place, module=model, optimizer=optimizer, sharded=True)

    def load(place: Any = path) -> None:
        engine.load_checkpoint(place, module=model, optimizer=optimizer)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    save()
    before = {name: whole(p) for name, p in plain.named_parameters()}
    train(run, 1)
    found = {"behind": words(load)}
    write = FileSystemWriter.write_data
    if rank == 1:
        FileSystemWriter.write_data = full
    found["full"] = words(save)
    FileSystemWriter.write_data = write
    here = os.getcwd()
    os.chdir(folder if rank == 0 else "/")
    found["elsewhere"] = words(lambda: save("elsewhere"))
    os.chdir(here)
    dist.barrier()
    found["left"] = " ".join(sorted(os.listdir(folder)))
    engine.detach()

    again = made(case_of(world, wrap), optimizer=adam)
    engine, plain, model, optimizer, *_ = again
    load()
    same = {name: whole(p) for name, p in plain.named_parameters()}
    found["former"] = str(all(torch.equal(before[name], value) for name, value in same.items()))
    save(Path(folder) / "other")
    found["two"] = words(lambda: load(path if rank == 0 else Path(folder) / "other"))
    dist.barrier()
    if rank == 0:
        place = path / "__1_0.distcp"
        place.write_bytes(place.read_bytes()[:-1])
    dist.barrier()
    found["damaged"] = words(load)
    return found


def unsaved(rank: int, world: int, folder: str) -> str:
    """Nobody knows of processes without a private run."""
    plain = nn.Linear(6, 3)
    optimizer = adam(plain.parameters())
    try:
        PrivacyEngine().save_checkpoint(Path(folder) / "run", module=plain, optimizer=optimizer, sharded=True)
    except TacitError as error:
        return str(error)
    return "nothing was raised"
