"""What autograd saves, counted on shapes, is what it saves of real tensors: to the byte."""

import pytest
import torch
from tests.scaling.small import loss_of, real, surveyed
from torch import nn

from tacit.scaling.activations import repeated


def saved_bytes(model, ids):
    known = {id(value.untyped_storage()) for value in (*model.parameters(), *model.buffers())}
    storages = {}

    def pack(value):
        storage = value.untyped_storage()
        if id(storage) not in known:
            storages[id(storage)] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss_of(model, ids)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "equal"])
def test_without_checkpointing(name):
    found = surveyed(name).activations.waiting(checkpointing=False)
    # GPT-2's positions are counted where a rule saves them, and not where torch does.
    assert found == pytest.approx(saved_bytes(*real(name)), rel=0.001)


@pytest.mark.parametrize("name", ["llama", "equal"])
def test_of_llama_to_the_byte(name):
    assert surveyed(name).activations.waiting(checkpointing=False) == saved_bytes(*real(name))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_with_checkpointing(name):
    found = surveyed(name).activations
    expected = saved_bytes(*real(name, checkpointing=True))
    # Checkpoints also keep what else a block is given: rotations, masks.
    assert found.waiting(checkpointing=True) == pytest.approx(expected, rel=0.05)
    assert found.waiting(checkpointing=True) < found.waiting(checkpointing=False) / 4


def test_each_block_saves_as_much():
    found = surveyed("llama").activations
    assert len(set(found.blocks[1:])) == 1
    assert found.one_block == max(found.blocks)
    assert set(found.inputs) == {4 * 64 * 128 * 4}


def test_blocks_are_where_most_parameters_are():
    small = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    large = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    assert repeated(nn.ModuleDict({"a": small, "b": large})) == ("b", list(large))
    assert repeated(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == ("", [])
