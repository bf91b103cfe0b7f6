"""Two passes over one forward: what the second sums up is what the first has bounded, or nothing is released."""

import random

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.errors import CheckpointError, LeakError, MemoryBudgetError, PrivacyError, SecondBackwardError

RECORDS, WIDTH, CLASSES, BOUND = 4, 6, 3, 0.05
WAYS = pytest.mark.parametrize("way", [{"memory_budget": 1}, {"grad_sample_mode": "ghost"}], ids=["budget", "ghost"])


class Network(nn.Module):
    """Two layers, with something in between and behind that a test chooses."""

    def __init__(self, between=lambda self, h: h, behind=lambda self, out: out):
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES, bias=False)
        self.between, self.behind = between, behind

    def forward(self, x):
        self.hidden = torch.tanh(self.first(x))
        return self.behind(self, self.last(self.between(self, self.hidden)))


def private(model, **changes):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(RECORDS, WIDTH).double(), torch.randint(CLASSES, (RECORDS,)))
    engine = PrivacyEngine()
    settings = {"noise_multiplier": 0.0, "max_grad_norm": BOUND, **changes}
    model, optimizer, loader, *rest = engine.make_private(
        module=model.double(),
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(data, batch_size=RECORDS),
        **settings,
    )
    ((x, y),) = list(loader)
    return engine, model, optimizer, rest[0] if rest else nn.CrossEntropyLoss(), x, y


def draws_again(self, h):
    return checkpoint(lambda h: h * torch.tensor(random.random() ** 4), h, use_reentrant=False)


def drops_again(self, h):
    return checkpoint(lambda h: nn.functional.dropout(h, 0.9), h, use_reentrant=False, preserve_rng_state=False)


def counts_calls(self, h):
    self.calls = []

    def grow(g):
        self.calls.append(None)
        return g * 100 ** len(self.calls)

    h.register_hook(grow)
    return h


@WAYS
@pytest.mark.parametrize("between", [draws_again, drops_again, counts_calls])
def test_a_second_pass_that_differs_is_refused(way, between):
    random.seed(0)
    _, model, _, criterion, x, y = private(Network(between), **way)
    loss = criterion(model(x), y)
    with pytest.raises(PrivacyError, match="the second of two passes"):
        loss.backward()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("between", [draws_again, counts_calls])
def test_one_pass_keeps_the_bound_all_the_same(between):
    _, model, _, criterion, x, y = private(Network(between))
    criterion(model(x[:1]), y[:1]).backward()
    total = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert float(total.norm()) <= BOUND * (1 + 1e-12)


class Difference(nn.Module):
    """One layer, called twice: what is left of both is far smaller than either."""

    NEARLY = 1e-9

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES, bias=False)

    def forward(self, x):
        one = checkpoint(lambda x: self.layer(x * (1 + self.NEARLY * random.random())), x, use_reentrant=False)
        return (one - self.layer(x)) / self.NEARLY


@WAYS
def test_a_small_difference_of_what_cancels_is_refused(way):
    """Each of the two uses is as it was, to 1e-9; their sum is another."""
    random.seed(0)
    _, model, _, criterion, x, y = private(Difference(), **way)
    with pytest.raises(PrivacyError, match="the second of two passes"):
        criterion(model(x), y).backward()


@WAYS
def test_torch_randomness_that_is_kept_is_no_difference(way):
    def drops(self, h):
        return checkpoint(lambda h: nn.functional.dropout(h, 0.5), h, use_reentrant=False)

    _, model, _, criterion, x, y = private(Network(drops), **way)
    criterion(model(x), y).backward()
    assert all(bool(p.grad.any()) for p in model.parameters())


class InPlace(torch.autograd.Function):
    """Scales the gradient it was given, in place."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g.mul_(-100.0)


def test_a_backward_that_writes_into_what_it_was_given():
    _, model, _, criterion, x, y = private(Network(behind=lambda self, out: InPlace.apply(out)), memory_budget=1)
    loss = criterion(model(x), y)
    with pytest.raises(PrivacyError, match="the second of two passes"):
        loss.backward()


@pytest.mark.parametrize(
    ("behind", "error"),
    [
        (lambda self, out: (out, self.first.weight), MemoryBudgetError),
        (lambda self, out: (out, self.first.weight.square().sum()), LeakError),
    ],
)
def test_a_penalty_on_weights_among_the_outputs_is_not_lost(behind, error):
    _, model, _, criterion, x, y = private(Network(behind=behind), memory_budget=1)
    with pytest.raises(error):
        criterion(model(x)[0], y)


def test_outputs_that_share_memory_and_are_changed():
    behind = lambda self, out: {"all": out, "first": out[:, :2]}  # noqa: E731
    _, model, _, _, x, _ = private(Network(behind=behind), memory_budget=1)
    out = model(x)
    out["all"].mul_(3.0)
    loss = out["first"].square().sum(1).mean()
    with pytest.raises(MemoryBudgetError, match="share memory"):
        loss.backward()


@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
def test_another_term_beside_the_returned_criterion_is_refused(clipping):
    _, model, _, criterion, x, y = private(Network(), grad_sample_mode="ghost", clipping=clipping)
    loss = criterion(model(x), y) + 10 * model(-x).square().mean()
    with pytest.raises(SecondBackwardError, match="another term"):
        loss.backward()


def test_a_frozen_part_without_gradients_is_no_checkpoint():
    class Backbone(Network):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Linear(WIDTH, WIDTH).requires_grad_(False)

        def forward(self, x):
            with torch.no_grad():
                x = self.backbone(x)
            return super().forward(x)

    found = []
    for budget in (None, 1):
        torch.manual_seed(3)
        model = Backbone()
        _, model, _, criterion, x, y = private(model, memory_budget=budget)
        criterion(model(x), y).backward()
        found.append(model.first.weight.grad.clone())
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


def test_a_forward_that_was_refused_leaves_no_trace():
    _, model, _, criterion, x, y = private(Network(), memory_budget=1)
    with pytest.raises(MemoryBudgetError):
        model(x.clone().requires_grad_())
    criterion(model(x), y).backward()
    assert bool(model.first.weight.grad.any())


def test_a_backward_within_a_backward_is_refused():
    _, model, _, criterion, x, y = private(Network())
    out = model(x)
    auxiliary, hidden = out.square().sum(), model.hidden

    def look(g):
        handle.remove()
        torch.autograd.grad(auxiliary, hidden, retain_graph=True)

    handle = hidden.register_hook(look)
    with pytest.raises(SecondBackwardError, match="inside another one"):
        criterion(out, y).backward(retain_graph=True)


def test_one_policy_for_a_whole_backward():
    engine, model, _, criterion, x, y = private(
        Network(), clipping="per_layer", max_grad_norm=1e-3, noise_multiplier=1.0
    )
    loss = criterion(model(x), y) * 1e3
    model.hidden.register_hook(lambda g: setattr(engine, "max_grad_norm", 10.0))
    loss.backward()
    total = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert float(total.norm()) <= RECORDS * 1e-3 * (1 + 1e-12)


def test_bounds_that_do_not_fit_are_refused_before_anything_is_loaded(tmp_path):
    engine, model, optimizer, *_ = private(Network(), clipping="grouped", max_grad_norm={"first.*": 1.0, "*": 2.0})
    engine.save_checkpoint(tmp_path / "saved", module=model, optimizer=optimizer)
    other = Network()
    other.first.requires_grad_(False)
    again, other, optimizer, *_ = private(other, clipping="grouped", max_grad_norm={"*": 7.0})
    before = other.last.weight.detach().clone()
    with pytest.raises(CheckpointError, match="does not fit"):
        again.load_checkpoint(tmp_path / "saved", module=other, optimizer=optimizer)
    assert torch.equal(other.last.weight, before)
    assert again.max_grad_norm == {"*": 7.0}


def test_bounds_are_copied():
    bounds = {"first.*": 1.0, "*": 2.0}
    engine, *_ = private(Network(), clipping="grouped", max_grad_norm=bounds)
    bounds["*"] = 1e9
    assert engine.max_grad_norm == {"first.*": 1.0, "*": 2.0}


class Convolved(nn.Module):
    """A convolution that is called once, or several times: its uses are then joined."""

    def __init__(self, calls):
        super().__init__()
        self.calls, self.layer, self.last = calls, nn.Conv1d(1, 1, 3, padding=1), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        h = x[:, None]
        for _ in range(self.calls):
            h = torch.tanh(self.layer(h))
        return self.last(h[:, 0])


@pytest.mark.parametrize("calls", [1, 2])
@WAYS
def test_convolutions_have_the_gradients_of_one_pass(way, calls):
    found = []
    for settings in (way, {}):
        torch.manual_seed(1)
        _, model, _, criterion, x, y = private(Convolved(calls), **settings)
        criterion(model(x), y).backward()
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*found)
