import torch

from tacit.uses import Outer
from tacit.uses.workspace import WORKSPACE, Workspace

LARGE = (4, 300, 300)
LIKE = torch.empty(0)


def test_memory_comes_back():
    space = Workspace()
    first = space.take(LARGE, LIKE)
    address = first.data_ptr()
    other = space.take(LARGE, LIKE)
    assert other.data_ptr() != address  # what is lent is not lent again
    space.give(first)
    again = space.take((3, 310, 310), LIKE)  # of similar size
    assert again.data_ptr() == address
    assert again.shape == (3, 310, 310)
    assert space.take(LARGE, LIKE).data_ptr() not in (address, other.data_ptr())


def test_types_sizes_and_strangers():
    space = Workspace()
    value, other = space.take(LARGE, LIKE), space.take(LARGE, LIKE)
    address = value.data_ptr()
    space.give(other)
    space.give(value)
    assert space.take(LARGE, LIKE.double()).data_ptr() != address
    assert space.take((40, 300, 300), LIKE).data_ptr() != address
    assert space.take((2, 2), LIKE)._base is None  # small ones are none of its business
    space.give(torch.empty(LARGE))
    space.give(torch.empty(3))
    assert space.take(LARGE, LIKE).data_ptr() == address
    space.give(value)
    space.clear()
    assert space._free == {}


def test_what_does_not_fit_any_more_goes():
    space = Workspace()
    lent = [space.take(LARGE, LIKE) for _ in range(3)]
    for value in lent:
        space.give(value)
    larger = [space.take((40, 300, 300), LIKE) for _ in range(3)]
    assert space._free[torch.float32] == []
    for value in larger:
        space.give(value)
    assert len(space._free[torch.float32]) == 3


def test_stored_uses_are_the_same_and_give_back():
    WORKSPACE.clear()
    torch.manual_seed(0)
    addresses = []
    for flipped in (False, True):
        for batch in (4, 5):
            a, g = torch.randn(batch, 6, 300), torch.randn(batch, 6, 310)
            shape = torch.Size((300, 310) if flipped else (310, 300))
            use = Outer(a, g, shape, flipped=flipped)
            stored = use.stored()
            torch.testing.assert_close(stored.dense(), use.dense())
            addresses.append(stored.dense().data_ptr())
            stored.release()
            stored.release()  # once only
    assert len(set(addresses)) == 1
    assert sum(len(blocks) for blocks in WORKSPACE._free.values()) == 1
    WORKSPACE.clear()
