"""Kept memory: who has a tensor of it has it alone."""

import gc
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from mmap import PAGESIZE

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.uses import TUNER, Dense, Outer, Room, Workspace
from tacit.uses.workspace import LEAST, PATIENCE, mapped_pages

SHAPE = (LEAST // 8, 4)  # of float32: twice the least


def always_mapped():
    """Counts as if each tensor were mapped anew."""
    always_mapped.pages += 10**6
    return always_mapped.pages


always_mapped.pages = 0


def ones(out):
    out.fill_(1)


def warm(*counts, pages=always_mapped):
    """A workspace that has seen enough of backwards that form so many tensors."""
    workspace = Workspace(pages)
    for _ in range(PATIENCE):
        workspace.begin()
        held = [workspace.filled(SHAPE, torch.float32, ones) for _ in range(*counts)]
        del held
    workspace.begin()
    return workspace


def test_what_is_mapped_anew_is_kept_when_it_was_often_enough():
    workspace = Workspace(always_mapped)
    for _ in range(PATIENCE):
        workspace.begin()
        assert workspace.size == 0
        workspace.filled(SHAPE, torch.float32, ones)
    workspace.begin()
    assert workspace.size >= 2 * LEAST


@pytest.mark.parametrize("often", [2, PATIENCE])
def test_where_there_is_enough_memory_nothing_is_kept(often):
    pages = [0]
    workspace = Workspace(lambda: pages[0])
    for number in range(3 * PATIENCE):
        workspace.begin()
        quarter = 2 * LEAST // PAGESIZE // 4

        def fill(out, quarter=quarter, number=number):
            pages[0] += quarter if number % often else quarter - 1

        workspace.filled(SHAPE, torch.float32, fill)
    workspace.begin()
    assert workspace.size == 0


def test_tensors_of_one_backward_share_no_memory_and_those_of_the_next_have_it_again():
    workspace = warm(3)
    first = [workspace.filled(SHAPE, torch.float32, ones) for _ in range(3)]
    for value, tensor in enumerate(first):
        tensor.fill_(value)
    assert [tensor.unique().tolist() for tensor in first] == [[0.0], [1.0], [2.0]]
    places = [tensor.data_ptr() for tensor in first]
    assert all(place % 64 == 0 for place in places)
    del first, tensor
    workspace.begin()
    again = [workspace.filled(SHAPE, torch.float32, ones) for _ in range(3)]
    assert [tensor.data_ptr() for tensor in again] == places


@pytest.mark.parametrize(
    "keep",
    [
        lambda t: t[1:3, 1],
        lambda t: t.view(-1).view(torch.int32),
        lambda t: t.detach().numpy(),
        lambda t: nn.Parameter(t),
        lambda t: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(t)),
        lambda t: t.untyped_storage(),
        lambda t: lambda: t,
    ],
)
def test_memory_that_anything_lies_in_is_not_handed_out(keep):
    """Each of these is all that is left of a tensor of the backward before."""
    workspace = warm(2)
    first = workspace.filled(SHAPE, torch.float32, ones)
    place, kept = first.data_ptr(), keep(first)
    del first
    gc.collect()
    workspace.begin()
    other = workspace.filled(SHAPE, torch.float32, lambda out: out.zero_())
    assert other.data_ptr() != place
    del other, kept
    gc.collect()
    workspace.begin()
    assert workspace.filled(SHAPE, torch.float32, ones).data_ptr() == place


def test_a_larger_batch_has_memory_of_its_own_and_room_in_the_next_backward():
    workspace = warm(1)
    size = workspace.size
    large = workspace.filled((2 * SHAPE[0], 4), torch.float64, ones)
    assert bool((large == 1).all())
    assert large.nbytes > size
    del large
    workspace.begin()
    assert workspace.size > 8 * LEAST


def test_what_is_held_through_many_backwards_does_not_make_room_for_all_of_them():
    workspace = warm(2)
    size = workspace.size
    held = workspace.filled(SHAPE, torch.float32, ones)
    for _ in range(50):
        workspace.begin()
        for _ in range(2):
            workspace.filled(SHAPE, torch.float32, ones)
    del held
    workspace.begin()
    assert workspace.size == size
    place = workspace.filled(SHAPE, torch.float32, ones).data_ptr()
    assert workspace.filled(SHAPE, torch.float32, ones).data_ptr() == place


def test_what_is_held_from_one_backward_into_the_next_takes_its_place_there():
    workspace = warm(1)
    size = workspace.size
    held = workspace.filled(SHAPE, torch.float32, ones)
    workspace.begin()
    several = [workspace.filled(SHAPE, torch.float32, ones) for _ in range(4)]
    assert len({held.data_ptr(), *[tensor.data_ptr() for tensor in several]}) == 5
    del held, several
    workspace.begin()
    assert 4 * 2 * LEAST <= workspace.size < 5 * 2 * LEAST
    assert workspace.size > size


def test_what_is_let_go_of_one_by_one_takes_the_memory_of_one():
    workspace = Workspace(always_mapped)
    for _ in range(PATIENCE + 1):
        workspace.begin()
        for _ in range(7):
            workspace.filled(SHAPE, torch.float32, ones)
    assert 2 * LEAST <= workspace.size < 3 * LEAST


def test_small_tensors_are_not_kept():
    workspace = Workspace(always_mapped)
    for _ in range(2 * PATIENCE):
        workspace.begin()
        assert workspace.filled((7, 3), torch.float64, ones).eq(1).all()
    assert workspace.size == 0


def test_several_threads():
    workspace = warm(4)

    def work(value):
        for _ in range(200):
            tensor = workspace.filled(SHAPE, torch.float32, lambda out: out.fill_(value))
            if not bool((tensor == value).all()):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_pages_are_counted():
    before = mapped_pages()
    held = torch.ones(2**23)
    assert mapped_pages() >= before
    assert held.nbytes == 2**25


def test_whole_gradients_are_the_same_in_kept_memory():
    a, g = torch.randn(5, 7, 160, dtype=torch.float64), torch.randn(5, 7, 90, dtype=torch.float64)
    workspace, shape = Workspace(always_mapped), torch.Size((90, 160))
    for _ in range(2 * PATIENCE):
        workspace.begin()
        use = Outer(a, g, shape).stored(workspace)
        assert isinstance(use, Dense)
        torch.testing.assert_close(use.gradients, torch.einsum("btp,btd->bpd", g, a))
        del use
    assert workspace.size > 5 * 90 * 160 * 8
    assert Outer(a.to("meta"), g.to("meta"), shape).stored(workspace).gradients.is_meta


def trained(monkeypatch, pages, **settings):
    """Parameters after some epochs, and what was kept."""
    monkeypatch.setattr(Workspace.__init__, "__defaults__", (pages,))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 96))
    data = TensorDataset(torch.randn(24, 6, 64), torch.randn(24, 6, 96))
    engine = PrivacyEngine()
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-2),
        data_loader=DataLoader(data, batch_size=12, generator=torch.Generator().manual_seed(1)),
        noise_multiplier=0.1,
        noise_generator=torch.Generator().manual_seed(2),
        **{"max_grad_norm": 1e-2, **settings},
    )
    with TUNER.forced("stored"):
        for x, y in chain(*[loader] * 6):
            optimizer.zero_grad()
            (model(x) - y).square().mean((1, 2)).mean().backward()
            optimizer.step()
    return [p.detach().clone() for p in model.parameters()], engine._attached.session._workspace


@pytest.mark.parametrize("settings", [{}, {"clipping": "per_layer"}])
def test_training_is_the_same_with_it(monkeypatch, settings):
    found, workspace = trained(monkeypatch, always_mapped, **settings)
    expected, other = trained(monkeypatch, lambda: 0, **settings)
    assert workspace.size > 0
    assert other.size == 0
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)


def test_a_budget_keeps_nothing(monkeypatch):
    _, workspace = trained(monkeypatch, always_mapped, memory_budget=10**9)
    assert workspace is None
    assert Room(1.0).workspace is None
