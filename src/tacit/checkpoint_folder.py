"""A checkpoint as a folder: each process writes its own shards, and process 0 what belongs to all of them, last.

Tensors are in files of torch's DCP (distributed checkpoint). Everything else, with tensors of no content in the place
of those, is in a file of tacit's own, which has the digests of the others: shards of one save and a history of another
are never taken for one checkpoint, whatever was copied over what.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tacit import checkpoint_file
from tacit.distributed import (
    Group,
    each_tensor,
    is_spread,
    read_shards,
    room_like,
    spread_model,
    spread_optimizer,
    write_shards,
)
from tacit.errors import CheckpointError

OWN = "tacit.pt"
FORMAT = "tacit-checkpoint-folder"


def write(path: Path, content: Mapping[str, Any], parameters: Collection[str], group: Group) -> None:
    """Write a folder beside ``path`` and move it into place. All processes must call it.

    Args:
        path: where to; a folder that is a checkpoint is replaced.
        content: under ``"model"`` and ``"optimizer"`` what this process has of them.
        parameters: names in the model's state of what is the same in all processes, if it is not spread. Everything
            else is process 0's.
        group: the processes.

    Raises:
        CheckpointError: it cannot be written there.
    """
    tensors: dict[str, Tensor] = {}
    emptied = {part: _emptied(content[part], part, tensors) for part in ("model", "optimizer")}
    mine = {name: value for name, value in tensors.items() if group.rank == 0 or _is_shared(name, value, parameters)}
    temporary = group.from_first(lambda: _begun(path))
    try:
        group.together(lambda: _check_seen(temporary), lambda _: {})
        files = write_shards(temporary, mine, group)
        group.from_first(lambda: _finish(path, temporary, {**content, **emptied, "files": files}))
    except BaseException:
        if group.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def own_file(path: Path) -> Path:
    """The file that a folder is a checkpoint by."""
    return path / OWN


def read(path: Path) -> dict[str, Any]:
    """Return what is in a folder, with tensors that have no content yet.

    Raises:
        CheckpointError: it is no checkpoint, or not whole.
    """
    if not own_file(path).exists():
        raise CheckpointError(
            f"{path} is a folder without {OWN}: it is not whole, or was not written by save_checkpoint(sharded=True). "
            "Nothing was changed."
        )
    return checkpoint_file.read(own_file(path), kind=FORMAT)


def filled(
    path: Path, content: Mapping[str, Any], model: Mapping[str, Any], optimizer: Optimizer, group: Group
) -> dict[str, Any]:
    """Return ``content`` with this process's part of each tensor, in new memory.

    Args:
        path: the folder.
        content: what `read` returned; it fits the model.
        model: the model's own state, which says how tensors are spread.
        optimizer: of its parameters.
        group: the processes. What one finds damaged it must tell the others.

    Raises:
        CheckpointError: a file of the folder is missing or damaged.
    """
    rooms = {
        "model": spread_model(content["model"], model, room_like),
        "optimizer": spread_optimizer(content["optimizer"], optimizer, room_like),
    }
    tensors: dict[str, Tensor] = {}
    rooms = {part: _with_rooms(state, part, tensors) for part, state in rooms.items()}
    try:
        read_shards(path, tensors, content["files"], group)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Nothing was changed.") from error
    return {**content, **rooms}


def _emptied(state: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A state with tensors that have no content, whose own go to ``tensors``."""

    def emptied(value: Tensor, name: str) -> Tensor:
        tensors[name] = value
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    return each_tensor(state, emptied, name)


def _with_rooms(state: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A state whose tensors are all to be filled; they go to ``tensors``, too."""

    def placed(value: Tensor, name: str) -> Tensor:
        tensors[name] = torch.empty(value.shape, dtype=value.dtype) if value.is_meta else value
        return tensors[name]

    return each_tensor(state, placed, name)


def _is_shared(name: str, value: Tensor, parameters: Collection[str]) -> bool:
    """Whether each process has this tensor or a part of it: not if it is a buffer, which may differ."""
    part, _, rest = name.partition(".")
    return is_spread(value) or part == "optimizer" or rest in parameters


def _begun(path: Path) -> Path:
    """A new folder beside ``path``, which may be replaced."""
    if path.exists() and not own_file(path).exists() and not (path.is_dir() and not any(path.iterdir())):
        raise CheckpointError(
            f"at {path} there is something that is no sharded checkpoint: save elsewhere, or remove it. Nothing was "
            "saved."
        )
    try:
        return Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise CheckpointError(f"cannot write into {path.parent}: {error.strerror}. Nothing was saved.") from error


def _check_seen(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(
            f"this process does not see the folder {folder} that process 0 has made: all write into one folder, on a "
            "file system that they share. Nothing was saved."
        )


def _finish(path: Path, temporary: Path, content: Mapping[str, Any]) -> None:
    """Make a folder a checkpoint, and put it into the place of the former one."""
    try:
        checkpoint_file.write(own_file(temporary), content, kind=FORMAT)
        _put(temporary, path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}. Nothing was saved.") from error


def _put(temporary: Path, path: Path) -> None:
    before = former(path)
    replaced = path.exists()
    if replaced:
        shutil.rmtree(before, ignore_errors=True)
        os.rename(path, before)  # a folder that is not empty cannot be replaced in one go
    try:
        os.rename(temporary, path)
    except OSError:
        if replaced:
            os.rename(before, path)
        raise
    shutil.rmtree(before, ignore_errors=True)


def former(path: Path) -> Path:
    """Where a folder is while another takes its place."""
    return path.with_name(f".{path.name}.before")
