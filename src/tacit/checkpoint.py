"""Checkpoints: written all or nothing, loaded all or nothing, and never behind what was spent."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tacit import checkpoint_file, checkpoint_folder, checkpoint_generators
from tacit.accounting import Accountant, create_accountant
from tacit.accounting.events import counted
from tacit.accounting.lineage import continues
from tacit.attachment import Attachment
from tacit.distributed import (
    Group,
    as_whole,
    digest_of,
    is_spread,
    spread_model,
    spread_optimizer,
    unwrapped,
    world_size,
)
from tacit.errors import CheckpointError, ConfigurationError
from tacit.optimizer import PrivateOptimizer


def save(
    path: Path,
    module: nn.Module,
    optimizer: Optimizer,
    accountant: Accountant,
    attached: Attachment | None,
    *,
    sharded: bool = False,
) -> None:
    """Write a checkpoint beside ``path`` and move it into place: one file, or a folder of shards."""
    module = unwrapped(module)  # so that one process and several can read each other's
    group = _writers(module, attached, sharded=sharded)
    model, inner = module.state_dict(), _inner(optimizer).state_dict()
    if group is not None and not sharded:
        model, inner = as_whole((model, inner), keep=group.rank == 0)
    content = {"model": model, "optimizer": inner, **_own_state(accountant, attached, group)}
    if sharded:
        names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        checkpoint_folder.write(path, content, names, group or Group(alone=True))
    elif group is None:
        checkpoint_file.write(path, content)
    else:
        group.from_first(lambda: checkpoint_file.write(path, content))


def _own_state(accountant: Accountant, attached: Attachment | None, group: Group | None) -> dict[str, Any]:
    """All that a checkpoint has besides model and optimizer.

    Args:
        accountant: what was released.
        attached: the private run, if there is one.
        group: the processes that call it together, if each may have drawn other noise.
    """
    return {
        "accountant": accountant.state_dict(),
        "settings": {} if attached is None else _settings(attached),
        "generators": {} if attached is None else checkpoint_generators.states(attached, group),
    }


def load(
    path: Path, module: nn.Module, optimizer: Optimizer, accountant: Accountant, attached: Attachment | None
) -> Mapping[str, Any]:
    """Check everything, then load everything; put all back if a part refuses.

    Returns:
        States of generators that still are to go on: those of a private run that has not begun.
    """
    module, inner = unwrapped(module), _inner(optimizer)
    group = _readers(module, attached)

    def checked() -> dict[str, Any]:
        content = _read(path)
        own = module.state_dict()
        _check_model(content["model"], own, path)
        content["changed"] = _check_own_state(content, accountant, attached, path)
        return checkpoint_folder.filled(path, content, own, inner, group) if path.is_dir() else content

    # Each process takes its part, and so all must find the same checkpoint.
    content = group.together(checked, lambda _: {"checkpoint": digest_of(_own_file(path))})
    _load_states(path, content, module, inner)
    return _load_own_state(content, accountant, attached)


def engine_state(accountant: Accountant, attached: Attachment | None) -> dict[str, Any]:
    """What checkpoints that others write must have besides model and optimizer.

    One piece of bytes: tools that load tensors in place would look for a history like the one at hand.
    """
    sharded = attached is not None and attached.sharding is not None
    group = attached.group if attached is not None and sharded else None
    return {"tacit": checkpoint_file.packed(_own_state(accountant, attached, group))}


def load_engine_state(
    state: Mapping[str, Any], accountant: Accountant, attached: Attachment | None
) -> Mapping[str, Any]:
    """Load what `engine_state` returned, if it fits; returns what `load` does."""
    where = "the state of the engine"
    content = checkpoint_file.unpacked(state.get("tacit"), where)
    changed = _check_own_state(content, accountant, attached, where)
    return _load_own_state({**content, "changed": changed}, accountant, attached)


def _check_own_state(
    content: Mapping[str, Any], accountant: Accountant, attached: Attachment | None, path: Path | str
) -> dict[str, Any]:
    """Refuse what does not fit this run; of what does, the part of the plan that will be in force."""
    _check_spent(content["accountant"], accountant, attached, path)
    if attached is None:
        return {}
    _check_settings(content["settings"], attached, path)
    checkpoint_generators.check(content["generators"], attached, path)
    return _changed(content["settings"], attached, path)


def _load_own_state(
    content: Mapping[str, Any], accountant: Accountant, attached: Attachment | None
) -> Mapping[str, Any]:
    accountant.load_state_dict(content["accountant"])
    waiting: Mapping[str, Any] = content["generators"]
    if attached is None:
        return waiting
    if attached.ledger is not None:  # it knows of all that was released since
        accountant.replace(attached.ledger.history())
    attached.change(**content["changed"])
    checkpoint_generators.restore(attached, waiting)
    return {}


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return checkpoint_folder.read(path)
    before = checkpoint_folder.former(path)
    if not path.exists() and before.exists():
        raise CheckpointError(
            f"there is no checkpoint at {path}: while a new one was being put there, something stopped it. The former "
            f"one is {before}: rename it, or load it from there. Nothing was changed."
        )
    return checkpoint_file.read(path)


def _own_file(path: Path) -> Path:
    """What a checkpoint is told by; it has digests of all else."""
    return checkpoint_folder.own_file(path) if path.is_dir() else path


def _load_states(path: Path, content: Mapping[str, Any], module: nn.Module, inner: Optimizer) -> None:
    own = module.state_dict()
    before = copy.deepcopy(own), copy.deepcopy(inner.state_dict())
    try:
        inner.load_state_dict(spread_optimizer(content["optimizer"], inner))
        module.load_state_dict(spread_model(content["model"], own))
    except (ValueError, RuntimeError, KeyError) as error:
        module.load_state_dict(before[0])
        inner.load_state_dict(before[1])
        raise CheckpointError(f"{path} does not fit: {error}. Nothing was changed.") from error


def _writers(module: nn.Module, attached: Attachment | None, *, sharded: bool) -> Group | None:
    """The processes that save together: those that each hold a part of the model, or are to write one.

    Raises:
        ConfigurationError: it is not private, so that nobody knows these processes.
    """
    spread = any(is_spread(p) for p in module.parameters())
    if attached is not None:
        return attached.group if spread or sharded else None
    _check_known(spread=spread, several=sharded and world_size() > 1)
    return None


def _readers(module: nn.Module, attached: Attachment | None) -> Group:
    """The processes that load together: all that train together."""
    if attached is not None:
        return attached.group
    _check_known(spread=any(is_spread(p) for p in module.parameters()))
    return Group(alone=True)


def _check_known(*, spread: bool, several: bool = False) -> None:
    if spread or several:
        what = "of a sharded model (fully_shard)" if spread else "with sharded=True"
        raise ConfigurationError(
            f"a checkpoint {what} is saved and loaded by all its processes together, between make_private() and "
            "detach(). Call make_private() first."
        )


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


def _check_settings(saved: Mapping[str, Any], attached: Attachment, path: Path | str) -> None:
    """Refuse to go on with other batches or another kind of clipping: the saved run was planned for its own."""
    own = _settings(attached)
    fixed = ("clipping", "loss_reduction", "records", "expected_batch_size", "sampling")
    other = {name: (saved[name], own[name]) for name in fixed if name in saved and saved[name] != own[name]}
    if other:
        shown = "; ".join(f"{name}: {old!r} there, {new!r} here" for name, (old, new) in other.items())
        raise CheckpointError(f"{path} was made with other settings ({shown}). Nothing was changed.")


def _changed(saved: Mapping[str, Any], attached: Attachment, path: Path | str) -> dict[str, Any]:
    """The saved noise and bounds, if they fit this run."""
    changed = {name: saved[name] for name in ("noise_multiplier", "max_grad_norm") if name in saved}
    try:
        dataclasses.replace(attached.plan, **changed)
    except ConfigurationError as error:
        raise CheckpointError(f"{path} does not fit: {error} Nothing was changed.") from error
    return changed


def _check_model(state: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> None:
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


def _check_spent(
    state: Mapping[str, Any], accountant: Accountant, attached: Attachment | None, path: Path | str
) -> None:
    ledger = None if attached is None else attached.ledger
    saved = create_accountant(accountant.mechanism())
    saved.load_state_dict(state)
    if ledger is None and counted(accountant.history) - counted(saved.history):
        raise CheckpointError(
            f"{path} knows of {saved.steps} releases, and not of all {accountant.steps} of this engine: loading it "
            "would forget spent budget. Load it into a new PrivacyEngine, and count both runs. Nothing was changed."
        )
    if ledger is None and not continues(saved.lineage.stretches, accountant.lineage.stretches):
        raise CheckpointError(
            f"the {saved.steps} releases that {path} knows of are of another run, and {accountant.steps} of this "
            "engine are not among them: loading it would forget spent budget. Load it into a new PrivacyEngine, and "
            "count both runs. Nothing was changed."
        )
    without = bool(saved.lineage.stretches)  # of those with a ledger it says nothing
    if ledger is not None and (without or counted(saved.history) - counted(ledger.history())):
        raise CheckpointError(
            f"{path} knows of {saved.steps} releases, of which some are not in the ledger {ledger.path} of "
            f"{ledger.releases}: they were made without it, and its epsilon would be too small. Nothing was changed."
        )
    if attached is not None and saved.steps and saved.unit not in (None, attached.plan.sampling.unit):
        raise CheckpointError(
            f"in {path} one {saved.unit} is the unit of privacy, here it is one {attached.plan.sampling.unit}. Nothing "
            "was changed."
        )
