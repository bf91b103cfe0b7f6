import gc
import mmap
import weakref

import pytest
import torch

from tacit.uses import Outer, pages
from tacit.uses.pages import LARGE_PAGE, fresh

LARGE = (2, LARGE_PAGE // 4, 2)


def test_memory_is_as_asked_for():
    for like in (torch.empty(0), torch.empty(0, dtype=torch.float64)):
        for shape in (LARGE, (3, 5), (0, 4)):
            found = fresh(shape, like)
            assert (found.shape, found.dtype, found.device) == (shape, like.dtype, like.device)
            assert found.is_contiguous()
            found.fill_(1.0)
            assert float(found.sum()) == found.numel()


@pytest.fixture
def mapped(monkeypatch):
    """What was mapped, and is not gone."""
    alive = weakref.WeakSet()

    class Memory(mmap.mmap):
        def __init__(self, *_args, **_kwargs):
            alive.add(self)

    monkeypatch.setattr(pages.mmap, "mmap", Memory)
    monkeypatch.setattr(pages.sys, "platform", "linux")
    return alive


def test_memory_goes_with_its_tensor(mapped):
    found = fresh(LARGE, torch.empty(0))
    part = found[1]
    assert len(mapped) == 1
    del found
    part.fill_(2.0)
    assert float(part.sum()) == 2 * part.numel()
    del part
    gc.collect()
    assert len(mapped) == 0


def test_small_ones_and_other_systems_are_left_to_torch(mapped, monkeypatch):
    small, elsewhere = fresh((3, 5), torch.empty(0)), fresh(LARGE, torch.empty(0, device="meta"))
    monkeypatch.setattr(pages.sys, "platform", "darwin")
    other = fresh(LARGE, torch.empty(0))
    assert (small.numel(), elsewhere.shape, other.shape) == (15, LARGE, LARGE)
    assert len(mapped) == 0


def test_a_kernel_without_large_pages(monkeypatch):
    class Memory(mmap.mmap):
        def madvise(self, *_args):
            raise OSError

    monkeypatch.setattr(pages.mmap, "mmap", Memory)
    assert fresh(LARGE, torch.empty(0)).shape == LARGE


@pytest.mark.parametrize("flipped", [False, True])
def test_stored_uses_are_the_same(flipped):
    torch.manual_seed(0)
    a, g = torch.randn(16, 6, 300), torch.randn(16, 6, 310)
    use = Outer(a, g, torch.Size((300, 310) if flipped else (310, 300)), flipped=flipped)
    torch.testing.assert_close(use.stored().dense(), use.dense())
