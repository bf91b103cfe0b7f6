"""Checkpoints in shards, of one process: the folder is whole and of one save, or it is refused."""

import copy
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tests.small_run import epoch
from tests.test_checkpoint import make, unchanged

from tacit import PrivacyEngine, checkpoint_file, checkpoint_folder
from tacit.errors import CheckpointError


def saved(path, steps=1):
    """A run of so many epochs, and the folder that it is saved in."""
    engine, model, optimizer, loader = make()
    for _ in range(steps):
        epoch(model, optimizer, loader)
    engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=True)
    return engine, model, optimizer, loader


def files(path):
    return {one.name: one.read_bytes() for one in path.iterdir()}


def refused(path, match):
    engine, model, optimizer, _ = make()
    unchanged(engine, model, optimizer, path, match)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # torch's, of its own tool
def test_torch_reads_the_folder_and_it_has_no_secrets(tmp_path):
    path = tmp_path / "run"
    _, model, _, _ = saved(path)
    assert sorted(files(path)) == [".metadata", "__0_0.distcp", "tacit.pt"]
    assert list(tmp_path.iterdir()) == [path]  # no temporary folder is left
    found = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    dcp.load({"model": found}, checkpoint_id=path, no_dist=True)
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())
    content = torch.load(path / "tacit.pt", weights_only=True)
    assert content["generators"] == {"noise": {}, "loader": None}
    assert all(value.is_meta for value in content["model"].values())


def test_what_is_missing_torn_changed_or_of_another_save_is_refused(tmp_path):
    path = tmp_path / "run"
    saved(path)
    good = files(path)
    saved(tmp_path / "later", steps=2)
    later = files(tmp_path / "later")
    for name, content in good.items():
        place = path / name
        words = "without tacit.pt" if name == "tacit.pt" else f"not whole: {name} cannot be read"
        place.unlink()
        refused(path, words)
        place.write_bytes(content[:-100])
        refused(path, "cannot be read" if name == "tacit.pt" else "is damaged")
        place.write_bytes(later[name])  # such as a later save, of which copying was cut short: more steps than releases
        refused(path, "is damaged")
        place.write_bytes(content)
    one = bytearray(good["__0_0.distcp"])
    one[len(one) // 2] ^= 1
    (path / "__0_0.distcp").write_bytes(one)
    refused(path, "is damaged")
    (path / "__0_0.distcp").write_bytes(good["__0_0.distcp"])
    shutil.copy(path / "tacit.pt", tmp_path / "alone.pt")
    refused(tmp_path / "alone.pt", "not written by save_checkpoint")
    engine, model, optimizer, _ = make()
    engine.load_checkpoint(path, module=model, optimizer=optimizer)
    assert engine.accountant.steps == 3


@pytest.mark.parametrize("where", ["shards", "own file", "first rename", "second rename"])
def test_a_save_that_stops_anywhere_leaves_the_former_checkpoint(tmp_path, monkeypatch, where):
    path = tmp_path / "run"
    engine, model, optimizer, loader = saved(path)
    good, weights = files(path), {name: value.clone() for name, value in model.state_dict().items()}
    epoch(model, optimizer, loader)

    def stop(*_, **__):
        raise OSError(28, "No space left on device")

    renames = [0]

    def rename(source, target, real=checkpoint_folder.os.rename):
        renames[0] += 1
        if renames[0] == {"first rename": 1, "second rename": 2}[where]:
            stop()
        real(source, target)

    with monkeypatch.context() as patch:
        if where == "shards":
            patch.setattr("torch.distributed.checkpoint.filesystem.FileSystemWriter.write_data", stop)
        elif where == "own file":
            patch.setattr(checkpoint_file.os, "replace", stop)
        else:
            patch.setattr(checkpoint_folder.os, "rename", rename)
        with pytest.raises(CheckpointError, match="No space left on device"):
            engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=True)
    assert files(path) == good
    assert list(tmp_path.iterdir()) == [path]
    other, resumed, other_optimizer, _ = make()
    other.load_checkpoint(path, module=resumed, optimizer=other_optimizer)
    assert all(torch.equal(value, weights[name]) for name, value in resumed.state_dict().items())
    engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=True)
    assert files(path) != good
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_dies_between_two_folders_leaves_both(tmp_path):
    path, before = tmp_path / "run", tmp_path / ".run.before"
    engine, model, optimizer, _ = saved(path)
    path.rename(before)
    refused(path, "The former one is .*.run.before")
    other, resumed, other_optimizer, _ = make()
    other.load_checkpoint(before, module=resumed, optimizer=other_optimizer)
    engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=True)
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_but_a_checkpoint_is_replaced(tmp_path):
    engine, model, optimizer, _ = make()
    work, note = tmp_path / "work", tmp_path / "work" / "note"
    work.mkdir()
    engine.save_checkpoint(work, module=model, optimizer=optimizer, sharded=True)  # an empty folder may be
    shutil.rmtree(work)
    work.mkdir()
    note.write_text("mine")
    for place in (work, note):
        with pytest.raises(CheckpointError, match="no sharded checkpoint"):
            engine.save_checkpoint(place, module=model, optimizer=optimizer, sharded=True)
    with pytest.raises(CheckpointError, match="is a folder"):
        engine.save_checkpoint(work, module=model, optimizer=optimizer)
    assert note.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [work]
    refused(work, "without tacit.pt")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # torch's, of its own tool
def test_an_engine_in_a_checkpoint_of_ones_own(tmp_path):
    """Saved by torch.distributed.checkpoint like a model: epsilon goes on, and what was spent is not forgotten."""
    engine, model, optimizer, loader = make(seed=3)
    epoch(model, optimizer, loader)
    dcp.save({"model": model.state_dict(), "engine": engine}, checkpoint_id=tmp_path / "run", no_dist=True)
    state = copy.deepcopy(optimizer.state_dict())
    epoch(model, optimizer, loader)
    other, resumed, other_optimizer, other_loader = make(seed=99)
    other.noise_multiplier = 2.0
    dcp.load({"model": resumed.state_dict(), "engine": other}, checkpoint_id=tmp_path / "run", no_dist=True)
    other_optimizer.load_state_dict(state)
    assert (other.accountant.steps, other.noise_multiplier) == (3, 1.0)
    epoch(resumed, other_optimizer, other_loader)
    assert other.get_epsilon(1e-5) == engine.get_epsilon(1e-5)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))
    spent, foreign = make()[0].state_dict(), {"tacit": checkpoint_file.packed({"history": []})}
    torn = {"tacit": spent["tacit"][:-50]}
    strange = "is not what state_dict\\(\\) returned"
    for bad, words in (({}, strange), (foreign, strange), (torn, "torn"), (spent, "forget spent budget")):
        with pytest.raises(CheckpointError, match=words):
            engine.load_state_dict(bad)
    assert engine.accountant.steps == 6


def test_without_a_private_model(tmp_path):
    """An engine that only counts: what was saved by a private run is read to evaluate it."""
    path = tmp_path / "run"
    engine, model, optimizer, _ = saved(path)
    engine.detach()
    engine.save_checkpoint(path, module=model, optimizer=optimizer, sharded=True)
    other, plain, plain_optimizer, _ = make()
    other.detach()
    reader = PrivacyEngine()
    reader.load_checkpoint(path, module=plain, optimizer=plain_optimizer)
    assert reader.get_epsilon(1e-5) == engine.get_epsilon(1e-5)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
