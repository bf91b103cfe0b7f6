"""Weights that move along with the noise are, to the last bit, what the optimizer would have made of them."""

import functools
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, TensorDataset

import tacit.optimizer
from tacit import BatchMemoryManager, PrivacyEngine
from tacit.errors import PrivacyError
from tacit.mechanisms import fused
from tacit.mechanisms.gaussian import SMALL
from tacit.plain_sgd import plain_rates

RECORDS, CLASSES = 12, 3
LARGE, LITTLE = (331, 401), (67, 77)  # with Numba its kernel makes noise for the first, torch for the second


def chain(sizes, dtype=torch.float32):
    torch.manual_seed(0)
    inputs, hidden = sizes
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Linear(hidden, CLASSES)
    ).to(dtype)


def plain(model, **settings):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.3} | settings)


class Run:
    """A private run with noise that can be made again; ``moved`` are the parameters of the last look."""

    def __init__(self, model, optimizer, *, along=True, noise_multiplier=1.0):
        self.inner, self.along, self.moved = optimizer, along, []
        first = model[0]
        data = TensorDataset(
            torch.randn(RECORDS, first.in_features, dtype=first.weight.dtype), torch.randint(0, CLASSES, (RECORDS,))
        )
        self.model, self.optimizer, self.loader = PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            data_loader=DataLoader(data, batch_size=RECORDS, generator=torch.Generator().manual_seed(1)),
            noise_multiplier=noise_multiplier,
            max_grad_norm=0.5,
            noise_generator=torch.Generator().manual_seed(2),
        )

    def rates(self, optimizer, own):
        found = plain_rates(optimizer, own) if self.along else {}
        self.moved = [name for name, p in self.model.named_parameters() if id(p) in found]
        return found

    def step(self, monkeypatch, pieces=1):
        monkeypatch.setattr(tacit.optimizer, "plain_rates", self.rates)
        for x, y in self.loader:
            self.optimizer.zero_grad()
            for part, labels in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                nn.functional.cross_entropy(self.model(part), labels).backward()
            self.optimizer.step()

    @property
    def left(self):
        """All that a step leaves in the parameters, and how often each was written to."""
        return [(p.detach().clone(), p.grad, p._version) for p in self.model.parameters()]


def assert_same(one, other):
    for (p, gradient, version), (q, expected, versions) in zip(one.left, other.left, strict=True):
        assert torch.equal(p, q)
        assert (gradient is None and expected is None) or torch.equal(gradient, expected)
        assert version == versions


def both(build, monkeypatch, *, steps=3, sizes=LARGE, dtype=torch.float32, pieces=1, schedule=None, **settings):
    """A run whose weights move along, and one whose optimizer steps them."""
    runs = []
    for along in (True, False):
        model = chain(sizes, dtype)
        run = Run(model, build(model), along=along, **settings)
        scheduler = None if schedule is None else schedule(run)
        for _ in range(steps):
            run.step(monkeypatch, pieces)
            if scheduler is not None:
                scheduler.step()  # which warns if it saw no step
        runs.append(run)
    assert_same(*runs)
    assert not runs[1].moved
    return runs[0]


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [LARGE, LITTLE, (64, 128)])
def test_weights_and_gradients_are_the_optimizers(sizes, dtype, foreach, monkeypatch):
    run = both(lambda m: plain(m, foreach=foreach), monkeypatch, sizes=sizes, dtype=dtype)
    assert run.moved == ["0.weight", "2.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_kernel_rounds_otherwise_torch_moves_them(dtype, monkeypatch):
    monkeypatch.setattr(fused, "moves_as_torch", lambda *_: False)
    assert both(plain, monkeypatch, dtype=dtype).moved


def test_without_numba(monkeypatch):
    monkeypatch.setattr("tacit.mechanisms.secure.kernel", lambda: None)
    assert both(plain, monkeypatch).moved


def test_without_noise(monkeypatch):
    assert both(plain, monkeypatch, noise_multiplier=0.0).moved


def test_threads(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert both(plain, monkeypatch).moved
    finally:
        torch.set_num_threads(threads)


def test_several_pieces_of_a_batch(monkeypatch):
    assert both(plain, monkeypatch, pieces=2).moved


def test_a_logical_batch_in_physical_ones(monkeypatch):
    runs = []
    for along in (True, False):
        model = chain(LARGE)
        run = Run(model, plain(model), along=along)
        with BatchMemoryManager(data_loader=run.loader, max_physical_batch_size=5, optimizer=run.optimizer) as pieces:
            loader, run.loader = run.loader, pieces
            run.step(monkeypatch)
            run.loader = loader
        runs.append(run)
    assert_same(*runs)
    assert runs[0].moved


def test_groups_with_rates_of_their_own_and_one_with_momentum(monkeypatch):
    def build(m):
        rates = [{"params": m[0].parameters(), "lr": 0.7}, {"params": m[2].parameters(), "momentum": 0.9}]
        return torch.optim.SGD([*rates, {"params": m[3].parameters()}], lr=1)

    assert both(build, monkeypatch).moved == ["0.weight"]


@pytest.mark.parametrize("of", ["optimizer", "inner"])
def test_schedulers(of, monkeypatch):
    run = both(plain, monkeypatch, schedule=lambda run: ExponentialLR(getattr(run, of), 0.7))
    assert run.moved
    assert run.inner.param_groups[0]["lr"] == pytest.approx(0.3 * 0.7**3)


def test_a_scheduler_from_before(monkeypatch):
    schedulers = []

    def build(m):
        inner = plain(m)
        schedulers.append(ExponentialLR(inner, 0.7))
        return inner

    assert both(build, monkeypatch, schedule=lambda _: schedulers[-1]).moved


def test_frozen_parameters_stay(monkeypatch):
    def build(m):
        m[0].requires_grad_(False)
        return plain(m)

    run = both(build, monkeypatch)
    assert torch.equal(run.model[0].weight, chain(LARGE)[0].weight)
    assert run.model[0].weight.grad is None


class Unused(nn.Sequential):
    def forward(self, x):
        return self[2](self[0](x))


def test_unused_parameters_get_noise(monkeypatch):
    runs = []
    for along in (True, False):
        torch.manual_seed(0)
        model = Unused(nn.Linear(90, 80), nn.Linear(90, 80), nn.Linear(80, CLASSES))
        run = Run(model, plain(model), along=along)
        with pytest.warns(UserWarning, match="no part in the first step's loss"):
            run.step(monkeypatch)
        runs.append(run)
    assert_same(*runs)
    assert runs[0].moved == ["0.weight", "1.weight"]


def test_hooks_and_profilers_see_the_step_whole(monkeypatch):
    """Also from the middle of a run on."""
    model = chain(LITTLE)
    run = Run(model, plain(model))
    run.step(monkeypatch)
    assert run.moved
    before, seen = model[0].weight.detach().clone(), []
    handle = run.optimizer.register_step_pre_hook(lambda *_: seen.append(torch.equal(model[0].weight, before)))
    run.step(monkeypatch)
    assert seen == [True]
    assert not run.moved
    handle.remove()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        run.step(monkeypatch)
    assert not run.moved
    run.step(monkeypatch)
    assert run.moved


def test_a_graph_from_before_the_step_is_refused(monkeypatch):
    """Autograd must see that a weight that it saved was written to."""
    model = chain(LARGE)
    run = Run(model, plain(model))
    weight = model[0].weight
    kept = (weight * weight).sum()
    run.step(monkeypatch)
    assert "0.weight" in run.moved
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(kept, weight)


def test_noise_that_fails_half_way(monkeypatch):
    """What has moved has moved by noisy numbers, autograd knows, and the step is not made again."""
    model = chain(LARGE)
    run = Run(model, plain(model))
    real, calls = fused.Rounding.__call__, []

    def breaks(self, numbers, part):
        if len(calls) == 2:
            raise MemoryError("no room")
        calls.append((self, part))
        real(self, numbers, part)

    monkeypatch.setattr("tacit.mechanisms.secure.kernel", lambda: None)
    monkeypatch.setattr(fused.Rounding, "__call__", breaks)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(MemoryError, match="no room"):
        run.step(monkeypatch)
    monkeypatch.setattr(fused.Rounding, "__call__", real)
    rounding, part = calls[0]
    place = next(i for i, p in enumerate(model.parameters()) if p.grad.data_ptr() == rounding.values.data_ptr())
    now = [p.detach() for p in model.parameters()]
    expected = before[place].view(-1)[part].add(rounding.values[part], alpha=-0.3)
    assert torch.equal(now[place].view(-1)[part], expected)
    moved = sum(int((p != q).sum()) for p, q in zip(now, before, strict=True))
    assert 0 < moved <= sum(part.stop - part.start for _, part in calls)
    assert model[0].weight._version > 0
    with pytest.raises(PrivacyError, match="was changed after its backward"):
        run.optimizer.step()
    run.step(monkeypatch)  # with a new batch it goes on


# What is not plain


def rates(optimizer, *own):
    return plain_rates(optimizer, (tacit.optimizer._ask_owners, *own))


def wide(*shape, **settings):
    return nn.Parameter(torch.randn(*(shape or (80, 90)), **settings))


def test_plain():
    p, small = wide(), wide(SMALL)
    assert rates(torch.optim.SGD([p, small], lr=0.1)) == {id(p): 0.1}
    assert rates(torch.optim.SGD([p], lr=1)) == {id(p): 1}


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"dampening": 0.1},
        {"weight_decay": 0.01},
        {"weight_decay": torch.tensor(0.0)},
        {"maximize": True},
        {"differentiable": True},
        {"fused": True},
        {"lr": torch.tensor(0.1)},
        {"lr": 1e300},
        {"lr": float("inf")},
    ],
    ids=str,
)
def test_settings_that_are_not_plain(settings):
    assert not rates(torch.optim.SGD([wide()], **{"lr": 0.1} | settings))


def test_a_rate_that_is_set_later():
    p = wide()
    optimizer = torch.optim.SGD([p], lr=0.1)
    for rate, fits in ((0.0, True), (float("nan"), False), (-0.1, False), (torch.tensor(0.1), False)):
        optimizer.param_groups[0]["lr"] = rate
        assert bool(rates(optimizer)) is fits


class Mine(torch.optim.SGD):
    pass


@pytest.mark.parametrize("kind", [Mine, torch.optim.Adam, torch.optim.ASGD, torch.optim.RMSprop])
def test_other_optimizers(kind):
    assert not rates(kind([wide()], lr=0.1))


class Odd(nn.Parameter):
    pass


TRANSPOSED, BASE = nn.Parameter(torch.randn(80, 90).t()), torch.randn(100, 90)


@pytest.mark.parametrize(
    "parameters",
    [
        [wide(dtype=torch.bfloat16)],
        [wide(dtype=torch.float16)],
        [wide(dtype=torch.complex64)],
        [wide(device="meta")],
        [TRANSPOSED],
        [Odd(torch.randn(80, 90))],
        [torch.randn(80, 90, requires_grad=True)],
        [nn.Parameter(BASE[:60]), nn.Parameter(BASE[59:])],
        [nn.Parameter(BASE), nn.Parameter(BASE.t())],
        [nn.Parameter(BASE), nn.Parameter(BASE[0, :5])],
        [nn.Parameter(torch.randn(80, 90).to_sparse())],
    ],
    ids=[
        "bfloat16",
        "half",
        "complex",
        "meta",
        "transposed",
        "subclass",
        "tensor",
        "overlap",
        "same",
        "small",
        "sparse",
    ],
)
def test_parameters_that_are_not_plain(parameters):
    assert not rates(torch.optim.SGD(parameters, lr=0.1))


def test_a_parameter_that_comes_twice_is_stepped_twice():
    p = wide()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of just that
        optimizer = torch.optim.SGD([p, p], lr=0.1)
    assert not rates(optimizer)


def test_of_several_parameters_those_that_are_plain():
    p, apart = wide(), [nn.Parameter(BASE[:50]), nn.Parameter(BASE[50:])]
    assert rates(torch.optim.SGD([p, TRANSPOSED], lr=0.1)).keys() == {id(p)}
    assert len(rates(torch.optim.SGD(apart, lr=0.1))) == 2


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_hooks(register):
    optimizer = torch.optim.SGD([wide()], lr=0.1)

    def hook(*_):
        pass

    handle = getattr(optimizer, register)(hook)
    assert not rates(optimizer)
    assert rates(optimizer, hook)
    handle.remove()
    assert rates(optimizer)


@pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
def test_hooks_of_all_optimizers(register):
    optimizer = torch.optim.SGD([wide()], lr=0.1)
    handle = register(lambda *_: None)
    assert not rates(optimizer)
    handle.remove()
    assert rates(optimizer)


def test_a_step_of_its_own():
    optimizer = torch.optim.SGD([wide()], lr=0.1)
    ExponentialLR(optimizer, 0.5)
    assert rates(optimizer)
    counted = optimizer.step
    for step in (
        lambda: None,
        functools.wraps(counted)(lambda: counted()),
        functools.wraps(torch.optim.SGD.step)(lambda: None),
        print,
    ):
        optimizer.step = step
        assert not rates(optimizer)


def test_a_step_that_all_of_the_class_have(monkeypatch):
    optimizer, real = torch.optim.SGD([wide()], lr=0.1), torch.optim.SGD.step
    hooked = torch.optim.Optimizer.profile_hook_step  # so torch wraps what is there when the first SGD is made
    for step in (
        lambda self: None,
        functools.wraps(real)(lambda self: real(self)),
        hooked(functools.wraps(real.__wrapped__)(lambda self: real.__wrapped__(self))),
    ):
        monkeypatch.setattr(torch.optim.SGD, "step", step)
        assert not rates(optimizer)
