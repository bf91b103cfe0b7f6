"""Any torch optimizer keeps working: groups, closures, schedulers, hooks, state."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import BatchMemoryManager, PrivacyEngine
from tacit.errors import ConfigurationError, PrivacyError

RECORDS, FEATURES, CLASSES = 9, 4, 3


def make(build, noise_multiplier=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()
    data = TensorDataset(torch.randn(RECORDS, FEATURES).double(), torch.randint(0, CLASSES, (RECORDS,)))
    plain = copy.deepcopy(model)
    engine = PrivacyEngine()
    inner = build(model)
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=inner,
        data_loader=DataLoader(data, batch_size=RECORDS),
        noise_multiplier=noise_multiplier,
        max_grad_norm=1e6,  # nothing is clipped: the private step equals the plain one
    )
    return model, optimizer, loader, plain, build(plain)


BUILDERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.1),
    "groups": lambda m: torch.optim.SGD([{"params": m[0].parameters(), "lr": 0.3}, {"params": m[2].parameters()}], 0.1),
}


PIECES = 3


def in_pieces(loader, optimizer):
    return BatchMemoryManager(data_loader=loader, max_physical_batch_size=RECORDS // PIECES, optimizer=optimizer)


def assert_same(model, plain):
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_without_clipping_and_noise_private_steps_are_plain_steps(build):
    model, optimizer, loader, plain, plain_optimizer = make(build)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    plain_scheduler = torch.optim.lr_scheduler.StepLR(plain_optimizer, 1, gamma=0.5)
    for _ in range(3):
        ((x, y),) = list(loader)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()
        plain_optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        plain_optimizer.step()
        plain_scheduler.step()
    assert_same(model, plain)
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in plain_optimizer.param_groups]
    assert optimizer.state_dict().keys() == plain_optimizer.state_dict().keys()


def test_scheduler_built_before_make_private():
    schedulers = []

    def build(m):
        inner = torch.optim.SGD(m.parameters(), lr=0.4)
        schedulers.append(torch.optim.lr_scheduler.StepLR(inner, 1, gamma=0.5))
        return inner

    model, optimizer, loader, *_ = make(build)
    ((x, y),) = list(loader)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    schedulers[0].step()
    assert optimizer.param_groups[0]["lr"] == 0.2


def test_closure():
    model, optimizer, loader, plain, plain_optimizer = make(BUILDERS["sgd"])
    ((x, y),) = list(loader)
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    value = optimizer.step(closure)
    expected = nn.functional.cross_entropy(plain(x), y)
    expected.backward()
    plain_optimizer.step()
    assert calls == [1]
    torch.testing.assert_close(value, expected)
    assert_same(model, plain)


def test_hooks_see_the_released_gradient():
    model, optimizer, loader, *_ = make(BUILDERS["sgd"], noise_multiplier=1e-3)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(model[0].weight.grad.clone()))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    ((x, y),) = list(loader)
    nn.functional.cross_entropy(model(x), y).backward()
    clean = model[0].weight.grad.clone()
    optimizer.step()
    assert seen[1] == "after"
    assert not torch.equal(seen[0], clean)
    assert torch.equal(seen[0], model[0].weight.grad)


def test_state_round_trip():
    model, optimizer, loader, _, plain_optimizer = make(BUILDERS["adam"])
    ((x, y),) = list(loader)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    plain_optimizer.load_state_dict(optimizer.state_dict())
    state = plain_optimizer.state_dict()["state"][0]
    torch.testing.assert_close(state["exp_avg"], optimizer.state[model[0].weight]["exp_avg"])
    optimizer.load_state_dict(plain_optimizer.state_dict())


def test_zero_grad_throws_the_pending_sum_away():
    model, optimizer, loader, *_ = make(BUILDERS["sgd"])
    ((x, y),) = list(loader)
    before = model[0].weight.detach().clone()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.zero_grad(set_to_none=False)
    assert float(model[0].weight.grad.abs().sum()) == 0
    with pytest.warns(UserWarning, match=r"without a backward\(\)"):
        optimizer.step()
    assert torch.equal(before, model[0].weight)


def fail_half_way(parts, **_):
    parts[0].fill_(1e3)
    raise MemoryError("no room")


@pytest.mark.parametrize("leave", [False, True], ids=["caught within the block", "caught outside of it"])
def test_zero_grad_throws_away_a_sum_in_pieces_whose_release_has_failed(leave, monkeypatch):
    model, optimizer, loader, plain, plain_optimizer = make(BUILDERS["sgd"])
    rows = []

    def train(physical, wanted=()):
        for x, y in physical:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            rows.append((x, y))
            with pytest.raises(MemoryError) if len(rows) in wanted else nullcontext():
                optimizer.step()

    with monkeypatch.context() as patch:
        patch.setattr("tacit.step.add_gaussian_noise", fail_half_way)
        with pytest.raises(MemoryError) if leave else nullcontext(), in_pieces(loader, optimizer) as physical:
            train(physical, wanted=() if leave else (PIECES,))
    assert_same(model, plain)
    rows.clear()
    with in_pieces(loader, optimizer) as physical:
        train(physical)
    x, y = (torch.cat(column) for column in zip(*rows, strict=True))
    nn.functional.cross_entropy(plain(x), y).backward()
    plain_optimizer.step()
    assert_same(model, plain)


def test_zero_grad_between_forward_and_backward():
    model, optimizer, loader, plain, plain_optimizer = make(BUILDERS["sgd"])
    ((x, y),) = list(loader)
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    nn.functional.cross_entropy(plain(x), y).backward()
    plain_optimizer.step()
    assert_same(model, plain)


def test_what_cannot_be_supported_is_refused():
    _, optimizer, *_ = make(BUILDERS["sgd"])
    with pytest.raises(ConfigurationError, match="before make_private"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(ConfigurationError, match="state_dict"):
        copy.deepcopy(optimizer)


class Lookahead(torch.optim.Optimizer):
    """Wraps an optimizer, and is one."""

    def __init__(self, base):
        super().__init__([p for group in base.param_groups for p in group["params"]], {})
        self.base = base

    def step(self, closure=None):
        return self.base.step(closure)


class TestAnotherOptimizer:
    """It would step by clipped sums without noise."""

    def backward(self):
        model, optimizer, loader, *_ = make(BUILDERS["sgd"])
        ((x, y),) = list(loader)
        nn.functional.cross_entropy(model(x), y).backward()
        return model, optimizer

    def test_over_private_parameters_is_refused(self):
        model, optimizer = self.backward()
        with pytest.raises(PrivacyError, match=r"another optimizer \(Adam\) has stepped parameters of a private model"):
            torch.optim.Adam(model[2].parameters()).step()
        optimizer.zero_grad()
        torch.optim.Adam(model[2].parameters()).step()  # nothing is pending

    def test_is_let_be_after_the_release(self):
        model, optimizer = self.backward()
        optimizer.step()
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    def test_over_other_parameters_is_let_be(self):
        self.backward()
        other = nn.Linear(2, 2)
        other(torch.ones(1, 2)).sum().backward()
        torch.optim.SGD(other.parameters(), lr=0.1).step()

    def test_may_wrap_the_private_one(self):
        model, optimizer = self.backward()
        before = model[0].weight.detach().clone()
        Lookahead(optimizer).step()
        assert not torch.equal(before, model[0].weight)

    def test_is_let_be_once_the_engine_lets_go(self):
        model, optimizer = self.backward()
        optimizer.detach()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
