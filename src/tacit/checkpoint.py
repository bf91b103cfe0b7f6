"""Checkpoints: written all or nothing, loaded all or nothing, and never behind what was spent."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tacit.accounting import Accountant, create_accountant
from tacit.accounting.events import counted
from tacit.attachment import Attachment
from tacit.distributed import Group, as_whole, is_spread, spread_like, spread_optimizer, unwrapped
from tacit.errors import CheckpointError, ConfigurationError
from tacit.optimizer import PrivateOptimizer
from tacit.sampling import user_generator

FORMAT = "tacit-checkpoint"
VERSION = 1
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
KEYS = ("model", "optimizer", "accountant", "settings", "generators")


def save(
    path: Path, module: nn.Module, optimizer: Optimizer, accountant: Accountant, attached: Attachment | None
) -> None:
    """Write a checkpoint beside ``path`` and move it into place."""
    module = unwrapped(module)  # so that one process and several can read each other's
    group = _sharers(module, attached)
    model, inner = module.state_dict(), _inner(optimizer).state_dict()
    if group is not None:
        model, inner = as_whole((model, inner), keep=group.rank == 0)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": model,
        "optimizer": inner,
        "accountant": accountant.state_dict(),
        "settings": {} if attached is None else _settings(attached),
        "generators": {} if attached is None else _generators(attached, group),
    }
    if group is None:
        _write(path, content)
    else:
        group.from_first(lambda: _write(path, content))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise CheckpointError(f"cannot write into {path.parent}: {error.strerror}. Nothing was saved.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(
    path: Path, module: nn.Module, optimizer: Optimizer, accountant: Accountant, attached: Attachment | None
) -> None:
    """Check everything, then load everything; put all back if a part refuses."""
    module = unwrapped(module)

    def checked() -> dict[str, Any]:
        content = _read(path)
        _check_model(content["model"], module, path)
        _check_spent(content["accountant"], accountant, attached, path)
        if attached is not None:
            _check_settings(content["settings"], attached, path)
            content["changed"] = _changed(content["settings"], attached, path)
        return content

    group = _sharers(module, attached)
    # Each process takes its part of the file, and so all must find the same one.
    content = checked() if group is None else group.together(checked, lambda _: {"checkpoint": _digest(path)})
    _load_states(path, content, module, _inner(optimizer))
    accountant.load_state_dict(content["accountant"])
    ledger = None if attached is None else attached.ledger
    if ledger is not None:  # it knows of all that was released since
        accountant.replace(ledger.history())
    if attached is not None:
        attached.change(**content["changed"])
        _restore_generators(attached, content["generators"])


def _load_states(path: Path, content: Mapping[str, Any], module: nn.Module, inner: Optimizer) -> None:
    own = module.state_dict()
    before = copy.deepcopy(own), copy.deepcopy(inner.state_dict())
    try:
        inner.load_state_dict(spread_optimizer(content["optimizer"], inner))
        module.load_state_dict({name: _like(value, own.get(name)) for name, value in content["model"].items()})
    except (ValueError, RuntimeError, KeyError) as error:
        module.load_state_dict(before[0])
        inner.load_state_dict(before[1])
        raise CheckpointError(f"{path} does not fit: {error}. Nothing was changed.") from error


def _like(value: Any, own: Any) -> Any:
    """What a file has for a part of the model, as this process holds it."""
    both = isinstance(value, torch.Tensor) and isinstance(own, torch.Tensor)
    return spread_like(value, own) if both else value


def _sharers(module: nn.Module, attached: Attachment | None) -> Group | None:
    """The processes that each hold a part of the model, if they do: they save and load together.

    Raises:
        ConfigurationError: it is not private, so that nobody knows these processes.
    """
    if not any(is_spread(p) for p in module.parameters()):
        return None
    if attached is None:
        raise ConfigurationError(
            "a checkpoint of a sharded model (fully_shard) is saved and loaded by all its processes together, between "
            "make_private() and detach(). Call make_private() first."
        )
    return attached.group


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_settings(path: Path) -> Mapping[str, Any]:
    """Return the settings with which a checkpoint was made.

    Raises:
        CheckpointError: the file is torn or foreign.
    """
    settings: Mapping[str, Any] = _read(path)["settings"]
    return settings


def _inner(optimizer: Optimizer) -> Optimizer:
    return optimizer.inner if isinstance(optimizer, PrivateOptimizer) else optimizer


def _settings(attached: Attachment) -> dict[str, Any]:
    sampling = attached.plan.sampling
    return {
        **attached.plan.facts,
        "records": sampling.records,
        "expected_batch_size": sampling.expected_batch_size,
        "grad_sample_mode": attached.settings.mode,
    }


def _check_settings(saved: Mapping[str, Any], attached: Attachment, path: Path) -> None:
    """Refuse to go on with other batches or another kind of clipping: the saved run was planned for its own."""
    own = _settings(attached)
    fixed = ("clipping", "loss_reduction", "records", "expected_batch_size", "sampling")
    other = {name: (saved[name], own[name]) for name in fixed if name in saved and saved[name] != own[name]}
    if other:
        shown = "; ".join(f"{name}: {old!r} there, {new!r} here" for name, (old, new) in other.items())
        raise CheckpointError(f"{path} was made with other settings ({shown}). Nothing was changed.")


def _changed(saved: Mapping[str, Any], attached: Attachment, path: Path) -> dict[str, Any]:
    """The saved noise and bounds, if they fit this run."""
    changed = {name: saved[name] for name in ("noise_multiplier", "max_grad_norm") if name in saved}
    try:
        dataclasses.replace(attached.plan, **changed)
    except ConfigurationError as error:
        raise CheckpointError(f"{path} does not fit: {error} Nothing was changed.") from error
    return changed


def _generators(attached: Attachment, group: Group | None) -> dict[str, Any]:
    """States of generators that the user gave. The others are secret: saving them would reveal noise and draws."""
    source = user_generator(attached.loader.source)
    noise = attached.noise.state_dict()
    if group is not None and "block" in noise:  # go on behind what any shard has drawn, whoever holds it then
        noise["block"] = max(group.gathered(noise["block"]))
    return {"noise": noise, "loader": None if source is None else source.get_state()}


def _restore_generators(attached: Attachment, states: Mapping[str, Any]) -> None:
    attached.noise.load_state_dict(states.get("noise", {}))
    source, state = user_generator(attached.loader.source), states.get("loader")
    if source is not None and state is not None:
        source.set_state(state)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint at {path}.") from error
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path} cannot be read: it is torn, or was not written by save_checkpoint(). Nothing was "
            f"changed. ({error})"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or any(key not in content for key in KEYS):
        raise CheckpointError(f"{path} was not written by save_checkpoint(). Nothing was changed.")
    if content["version"] != VERSION:
        raise CheckpointError(
            f"{path} has the format {content['version']}, this version of tacit reads {VERSION}. Nothing was changed."
        )
    return content


def _check_model(state: Mapping[str, Any], module: nn.Module, path: Path) -> None:
    own = module.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{path} is of another model: {len(missing)} of its parameters are not in the file ({missing[:3]}), "
            f"{len(unknown)} in the file are not in the model ({unknown[:3]}). Nothing was changed."
        )
    for name, value in own.items():
        if isinstance(value, torch.Tensor) and value.shape != state[name].shape:
            raise CheckpointError(
                f"{path} is of another model: {name} has the shape {tuple(state[name].shape)} in the file, "
                f"{tuple(value.shape)} in the model. Nothing was changed."
            )


def _check_spent(state: Mapping[str, Any], accountant: Accountant, attached: Attachment | None, path: Path) -> None:
    ledger = None if attached is None else attached.ledger
    saved = create_accountant(accountant.mechanism())
    saved.load_state_dict(state)
    if ledger is None and counted(accountant.history) - counted(saved.history):
        raise CheckpointError(
            f"{path} knows of {saved.steps} releases, and not of all {accountant.steps} of this engine: loading it "
            "would forget spent budget. Load it into a new PrivacyEngine, and count both runs. Nothing was changed."
        )
    if ledger is not None and counted(saved.history) - counted(ledger.history()):
        raise CheckpointError(
            f"{path} knows of {saved.steps} releases, of which some are not in the ledger {ledger.path} of "
            f"{ledger.releases}: they were made without it, and its epsilon would be too small. Nothing was changed."
        )
    if attached is not None and saved.steps and saved.unit not in (None, attached.plan.sampling.unit):
        raise CheckpointError(
            f"in {path} one {saved.unit} is the unit of privacy, here it is one {attached.plan.sampling.unit}. Nothing "
            "was changed."
        )
