"""A checkpoint as one file: written all or nothing, and read with words for what it is not."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from tacit.errors import CheckpointError

FORMAT = "tacit-checkpoint"
VERSION = 1
KEYS = ("model", "optimizer", "accountant", "settings", "generators")
_UNREADABLE = (
    # What torch.load raises on torn and foreign files, depending on where they break off.
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    pickle.UnpicklingError,
)


def write(path: Path, content: Mapping[str, Any], *, kind: str = FORMAT) -> None:
    """Write a file beside ``path`` and move it into place.

    Args:
        path: where to.
        content: what is under ``KEYS``, and more.
        kind: of what format it is.

    Raises:
        CheckpointError: it cannot be written there.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise CheckpointError(f"cannot write into {path.parent}: {error.strerror}. Nothing was saved.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": kind, "version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, IsADirectoryError):
            raise CheckpointError(f"{path} is a folder: save elsewhere, or remove it. Nothing was saved.") from error
        raise


def read(path: Path, *, kind: str = FORMAT) -> dict[str, Any]:
    """Return what `write` has written.

    Raises:
        CheckpointError: the file is not there, torn, foreign, or of another version.
    """
    content: Any = _loaded(path, str(path))
    if not isinstance(content, dict) or content.get("format") != kind or not _has(content, KEYS):
        raise CheckpointError(f"{path} was not written by save_checkpoint(). Nothing was changed.")
    if content["version"] != VERSION:
        raise CheckpointError(
            f"{path} has the format {content['version']}, this version of tacit reads {VERSION}. Nothing was changed."
        )
    return content


def packed(content: Mapping[str, Any]) -> bytes:
    """Return what `unpacked` reads: for tools that would take a nested state apart."""
    file = io.BytesIO()
    torch.save(dict(content), file)
    return file.getvalue()


def unpacked(packed: object, name: str) -> dict[str, Any]:
    """Return what was packed, which is at least all of a checkpoint but model and optimizer.

    Raises:
        CheckpointError: it is something else.
    """
    content = _loaded(io.BytesIO(packed), name) if isinstance(packed, bytes) else packed
    if not isinstance(content, dict) or not _has(content, KEYS[2:]):
        raise CheckpointError(f"{name} is not what state_dict() returned. Nothing was changed.")
    return content


def _has(content: Mapping[str, Any], parts: Collection[str]) -> bool:
    return all(isinstance(content.get(part), Mapping) for part in parts)


def _loaded(file: Path | io.BytesIO, name: str) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint at {name}.") from error
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{name} cannot be read: it is torn, or was not written by save_checkpoint(). Nothing was "
            f"changed. ({error})"
        ) from error
