"""Groups of parameters with bounds of their own are clipped inside the backward, and nothing is held."""

import gc
import math
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.errors import ConfigurationError, PrivacyError
from tacit.uses import Outer

RECORDS, FEATURES, WIDTH, CLASSES = 8, 6, 5, 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES))


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(RECORDS, FEATURES, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(CLASSES, (RECORDS,), generator=generator))


def private(model, **changes):
    engine = PrivacyEngine()
    settings = {"noise_multiplier": 0.0, "max_grad_norm": 0.3, "clipping": "per_layer", **changes}
    made = engine.make_private(
        module=model.double(),
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(data(), batch_size=RECORDS),
        **settings,
    )
    return engine, *made


def rows(model, x, y):
    """Each sample's gradients, by name."""
    found = []
    for one, label in zip(x, y, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(one[None]), label[None]).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    model.zero_grad()
    return found


def clipped(found, bounds):
    """The sum, with each group of parameters clipped to its bound."""
    total = {name: torch.zeros_like(value) for name, value in found[0].items()}
    for row in found:
        for names, bound in bounds:
            norm = math.sqrt(sum(float(row[name].square().sum()) for name in names))
            for name in names:
                total[name] += row[name] * min(1.0, bound / norm)
    return total


def backward(model, loader):
    ((x, y),) = list(loader)
    nn.functional.cross_entropy(model(x), y).backward()
    return x, y


@pytest.mark.parametrize("mode", ["auto", "hooks", "ghost", "functorch"])
def test_groups_by_patterns_are_clipped_to_their_bounds(mode):
    model = network()
    bounds = {"0.*": 0.02, "*.weight": 0.5, "*": 0.1}
    engine, model, _, loader, *_ = private(model, max_grad_norm=bounds, clipping="grouped", grad_sample_mode=mode)
    x, y = backward(model, loader)
    sums = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert engine.stats.max_grad_norm == pytest.approx(math.sqrt(0.02**2 + 0.5**2 + 0.1**2))
    assert engine.stats.fraction_clipped == 1.0
    engine.detach()
    groups = [
        (["0.weight", "0.bias"], 0.02),
        (["2.weight", "3.weight"], 0.5),
        (["2.bias", "3.bias"], 0.1),
    ]
    for name, expected in clipped(rows(model, x, y), groups).items():
        torch.testing.assert_close(sums[name], expected, rtol=1e-9, atol=1e-12)


def test_nothing_is_held_until_the_end_of_the_backward():
    engine, model, _, loader = private(network())
    alive, counts = weakref.WeakSet(), []
    original = Outer.__init__

    def watched(self, *args, **kwargs):
        gc.collect()
        counts.append(len(alive))
        original(self, *args, **kwargs)
        alive.add(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Outer, "__init__", watched)
        backward(model, loader)
    assert counts == [0, 0, 0]  # each finds those of the layers behind it gone
    assert engine.explain().parameters


def test_the_noise_is_that_of_all_groups_together():
    engine, model, optimizer, loader = private(
        network(), noise_multiplier=2.0, max_grad_norm={"0.*": 3.0, "*": 4.0}, clipping="grouped"
    )
    assert engine.plan.policy.sensitivity == 5.0
    values = []
    for _ in range(400):
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        optimizer.zero_grad()
        list(loader)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # noise alone is released, on purpose
            optimizer.step()
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        values.append((before - after) * RECORDS)
    noise = torch.cat(values)
    ratio = float(noise.square().mean()) / 10.0**2
    assert abs(ratio - 1) < 5.2 * math.sqrt(2 / len(noise))  # two-sided, under 1e-6


def test_an_unfinished_backward_leaves_no_trace():
    engine, model, _, loader = private(network())
    ((x, y),) = list(loader)
    x.requires_grad_()
    loss = nn.functional.cross_entropy(model(x), y)
    torch.autograd.grad(loss, x, retain_graph=True)
    loss.backward()
    sums = {name: p.grad.clone() for name, p in model.named_parameters()}
    engine.detach()
    layers = [([f"{i}.weight", f"{i}.bias"], 0.3 / math.sqrt(3)) for i in (0, 2, 3)]
    for name, expected in clipped(rows(model, x.detach(), y), layers).items():
        torch.testing.assert_close(sums[name], expected, rtol=1e-9, atol=1e-12)


def test_a_sample_without_finite_gradients_moves_no_other():
    model = network()
    _, model, _, loader = private(model)
    ((x, y),) = list(loader)
    x[2] = math.inf
    nn.functional.cross_entropy(model(x), y).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


class Twice(nn.Module):
    """Uses one layer twice, and lets the first output out by a side door."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.head(self.layer(torch.tanh(self.layer(x))))


def test_a_second_backward_over_one_forward_is_refused():
    _, model, _, loader = private(Twice())
    ((x, y),) = list(loader)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    with pytest.raises(PrivacyError, match="second time"):
        loss.backward()


def test_uses_beyond_those_announced_are_refused():
    engine, model, _, loader = private(Twice())
    ((x, y),) = list(loader)
    loss = nn.functional.cross_entropy(model(x), y)
    run, _ = engine._attached.session.open_pass
    run.contacts.update({"layer.weight": 1, "layer.bias": 1})
    with pytest.raises(PrivacyError, match="clipping='flat'"):
        loss.backward()


def test_a_parameter_unfrozen_later_is_refused():
    model = network()
    model[0].weight.requires_grad_(False)
    _, model, _, loader = private(model)
    model[0].weight.requires_grad_(True)
    with pytest.raises(ConfigurationError, match="was frozen"):
        backward(model, loader)


def test_bounds_follow_a_schedule():
    engine, model, _, loader = private(network())
    engine.max_grad_norm = 0.01
    backward(model, loader)
    assert engine.stats.max_grad_norm == pytest.approx(0.01)
    with pytest.raises(ConfigurationError, match="grouped"):
        engine.max_grad_norm = {"*": 1.0}


def test_the_statement_says_that_groups_are_clipped():
    engine, *_ = private(network(), noise_multiplier=1.0)
    assert "clipped in groups of weights" in engine.statement(1e-6).text
