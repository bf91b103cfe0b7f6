"""A memory budget is kept: by forms that hold less, by two passes, or by a refusal in words."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.errors import ConfigurationError, MemoryBudgetError, SecondBackwardError
from tacit.rules.linear import outer_use
from tacit.uses import Dense, Outer, Room, free_memory

RECORDS, POSITIONS, WIDTH, CLASSES = 6, 7, 5, 3


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(WIDTH, 2 * WIDTH)
        self.norm = nn.LayerNorm(2 * WIDTH)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x):
        self.hidden = torch.tanh(self.first(x))
        return self.last(self.drop(self.norm(self.hidden)).mean(1))


def private(budget, model=None, **changes):
    torch.manual_seed(0)
    model = (model or Network()).double()
    data = TensorDataset(
        torch.randn(RECORDS, POSITIONS, WIDTH, dtype=torch.float64), torch.randint(CLASSES, (RECORDS,))
    )
    engine = PrivacyEngine()
    _, optimizer, loader, *_ = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(data, batch_size=RECORDS),
        noise_multiplier=0.0,
        max_grad_norm=0.05,
        memory_budget=budget,
        **changes,
    )
    return engine, model, optimizer, loader


def gradients(model, loader, pieces=1):
    ((x, y),) = list(loader)
    torch.manual_seed(1)
    for part_x, part_y in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
        nn.functional.cross_entropy(model(part_x), part_y).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("pieces", [1, 3])
def test_two_passes_give_the_gradient_of_one(pieces):
    (engine, model, _, loader), (_, other, _, again) = private(None), private(1)
    one, two = gradients(model, loader, pieces), gradients(other, again, pieces)
    assert engine.stats.fraction_clipped == 1.0
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-12, atol=1e-15)


def test_the_budget_decides_how_many_passes_are_run():
    seen = {}
    for budget in (1, 10**9):
        engine, model, _, loader = private(budget)
        ((x, y),) = list(loader)
        loss = nn.functional.cross_entropy(model(x), y)
        seen[budget] = engine._attached.session.open_pass[0].bounded
        loss.backward()
        assert len(engine.explain().parameters) == len(list(model.parameters()))
    assert seen == {1: True, 10**9: False}


def test_one_pass_holds_no_more_than_the_budget():
    engine, model, _, loader = private(10**9)
    ((x, _),) = list(loader)
    model(x)
    least = engine._attached.session.open_pass[0].room.expected
    engine, model, _, loader = private(least)
    ((x, y),) = list(loader)
    loss = nn.functional.cross_entropy(model(x), y)
    assert not engine._attached.session.open_pass[0].bounded
    loss.backward()
    assert sum(one.held for one in engine.explain().parameters if len(one.shape) == 2) == least


def test_memory_decides_between_forms():
    a, g = torch.randn(3, 40, 8), torch.randn(3, 40, 2)
    shape = torch.Size((2, 8))
    whole = outer_use(a, g, shape, room=Room())
    assert isinstance(whole, Dense)
    assert isinstance(outer_use(a, g, shape, room=Room(0)), Dense)  # the least
    a, g, shape = torch.randn(3, 20, 80), torch.randn(3, 20, 60), torch.Size((60, 80))
    room = Room(10**6)
    room.expect(a.nbytes + g.nbytes)
    room.open()
    assert room.afford(10**6 - a.nbytes - g.nbytes)
    assert isinstance(outer_use(a, g, shape, room=room), Outer)


def test_free_memory_of_a_device():
    assert 2**20 < free_memory(torch.device("cpu")) < math.inf
    assert free_memory(torch.device("meta")) == math.inf


def test_steps_and_empty_batches():
    _, model, optimizer, loader = private(1)
    model(torch.zeros(0, POSITIONS, WIDTH, dtype=torch.float64)).sum().backward()
    assert all(not bool(p.grad.any()) for p in model.parameters())
    optimizer.zero_grad()
    gradients(model, loader)
    optimizer.step()


def test_a_part_of_the_loss_around_the_outputs_is_refused():
    _, model, _, loader = private(1)
    ((x, y),) = list(loader)
    out = model(x)
    loss = nn.functional.cross_entropy(out, y) + model.hidden.square().mean()
    with pytest.raises(SecondBackwardError, match="put out all that the loss depends on"):
        loss.backward()


def test_two_forwards_of_one_backward():
    _, model, _, loader = private(1)
    ((x, y),) = list(loader)
    model.drop.p = 0.0
    (nn.functional.cross_entropy(model(x), y) + nn.functional.cross_entropy(model(-x), y)).backward()
    two = {name: p.grad.clone() for name, p in model.named_parameters()}
    _, other, _, again = private(None)
    other.drop.p = 0.0
    ((x, y),) = list(again)
    (nn.functional.cross_entropy(other(x), y) + nn.functional.cross_entropy(other(-x), y)).backward()
    for name, p in other.named_parameters():
        torch.testing.assert_close(two[name], p.grad, rtol=1e-12, atol=1e-15)


def test_a_second_forward_that_would_be_too_much_is_refused():
    engine, model, _, loader = private(10**9)
    ((x, _),) = list(loader)
    model(x)
    engine._attached.session.open_pass[0].room._limit = 1
    with pytest.raises(MemoryBudgetError, match="only the first"):
        model(x)


def test_inputs_that_want_a_gradient_are_refused():
    _, model, _, loader = private(1)
    ((x, _),) = list(loader)
    with pytest.raises(MemoryBudgetError, match="an input requires a gradient"):
        model(x.requires_grad_())


def test_a_second_backward_is_refused():
    _, model, _, loader = private(1)
    ((x, y),) = list(loader)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    with pytest.raises(SecondBackwardError):
        loss.backward()


def test_the_budget_belongs_to_the_default_mode():
    for mode in ("ghost", "hooks", "functorch"):
        with pytest.raises(ConfigurationError, match="memory_budget"):
            private(1, grad_sample_mode=mode)
    with pytest.raises(ConfigurationError, match="above 0"):
        private(-1)
