"""The proof's steps: noise of the right size, once, everywhere; contributions bounded by C."""

import math

import pytest
import torch
from tests.small_run import make, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.clipping import FlatClipping
from tacit.mechanisms import add_gaussian_noise
from tacit.step import clipping_factors

RECORDS, FEATURES, CLASSES = 12, 6, 3
SIGMA, C = 1.3, 0.7


def run(loss_reduction="mean", seed=0, noise_multiplier=SIGMA, model=None, **changes):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(FEATURES, 40), nn.Tanh(), nn.Linear(40, CLASSES))
    data = TensorDataset(torch.randn(RECORDS, FEATURES), torch.randint(0, CLASSES, (RECORDS,)))
    engine = PrivacyEngine()
    made = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(data, batch_size=RECORDS),
        noise_multiplier=noise_multiplier,
        max_grad_norm=C,
        loss_reduction=loss_reduction,
        noise_generator=torch.Generator().manual_seed(seed),
        **changes,
    )
    return engine, *made


def released(engine, model, optimizer, loader, steps, pieces=1):
    """Noise of ``steps`` releases: what was released minus the clipped sum, (steps, parameters)."""
    rows = []
    reduction = engine.plan.loss_reduction
    loss_fn = nn.CrossEntropyLoss(reduction=reduction)
    divisor = RECORDS if reduction == "mean" else 1
    for _ in range(steps):
        ((x, y),) = list(loader)
        optimizer.zero_grad()
        for part_x, part_y in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
            loss_fn(model(part_x), part_y).backward()
        clean = torch.cat([p.grad.flatten().clone() for p in model.parameters()])
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        optimizer.step()
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        rows.append(((before - after) * divisor - clean).double())
    return torch.stack(rows)


# A chi-square variable over n draws leaves (1 ± z√(2/n)) with probability under 1e-6 at z = 5 (two-sided 5.7e-7,
# n > 10⁴, so that it is normal to within the margin taken here).
Z = 5.2


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_noise_has_the_stated_deviation_however_the_batch_is_split(reduction, pieces):
    noise = released(*run(reduction, seed=pieces), steps=40, pieces=pieces)
    n = noise.numel()
    assert n > 10_000
    ratio = float(noise.square().mean()) / (SIGMA * C) ** 2
    assert abs(ratio - 1) < Z * math.sqrt(2 / n)
    assert abs(float(noise.mean())) < Z * SIGMA * C / math.sqrt(n)


def test_every_parameter_gets_its_own_noise():
    engine, model, *rest = run()
    noise = released(engine, model, *rest, steps=60)
    start = 0
    for p in model.parameters():
        part = noise[:, start : start + p.numel()]
        start += p.numel()
        n = part.numel()
        # a normal approximation of chi-square is too tight for small n: three times the width
        assert abs(float(part.square().mean()) / (SIGMA * C) ** 2 - 1) < 3 * Z * math.sqrt(2 / n)


def test_noise_is_independent_between_steps_and_parameters():
    noise = released(*run(seed=5), steps=60) / (SIGMA * C)
    n = noise[1:].numel()
    for shifted in (noise[1:] * noise[:-1], noise[:, 1:] * noise[:, :-1]):
        # products of independent normals have variance 1; sums of > 10⁴ of them are normal
        assert abs(float(shifted.mean())) < Z / math.sqrt(n)
    assert len({tuple(row[:4].tolist()) for row in noise}) == len(noise)


def test_default_noise_does_not_follow_the_global_seed():
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Linear(FEATURES, CLASSES)
        data = TensorDataset(torch.zeros(RECORDS, FEATURES), torch.zeros(RECORDS, dtype=torch.long))
        engine = PrivacyEngine()
        _, optimizer, loader = engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            data_loader=DataLoader(data, batch_size=RECORDS),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
        )
        torch.manual_seed(0)
        ((x, y),) = list(loader)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        weights.append(model.weight.detach().clone())
        assert "operating system" in engine.noise_source
    assert not torch.equal(*weights)


def test_a_given_generator_makes_noise_reproducible():
    first, again, other = (released(*run(seed=seed), steps=2) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_epsilon_uses_the_noise_multiplier_as_given_under_both_reductions():
    from tacit.accounting import epsilon

    for reduction in ("mean", "sum"):
        engine, *made = run(reduction)
        released(engine, *made, steps=3)
        expected = epsilon(noise_multiplier=SIGMA, sample_rate=1.0, steps=3, delta=1e-5)
        assert engine.get_epsilon(1e-5) == pytest.approx(expected, rel=1e-9)


def test_one_release_is_one_event():
    engine, *made = run()
    released(engine, *made, steps=4, pieces=3)
    assert engine.accountant.steps == 4


def test_the_divisor_is_the_expected_batch_size_and_not_floored():
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False)
    data = TensorDataset(torch.ones(10, 2))
    engine = PrivacyEngine()
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(data, batch_size=4),  # 3 batches: 10/3 expected
        noise_multiplier=0.0,
        max_grad_norm=100.0,
    )
    for (x,) in loader:
        optimizer.zero_grad()
        before = model.weight.detach().clone()
        model(x).mean().backward()
        optimizer.step()
        expected = torch.full((1, 2), len(x) / (10 / 3))
        torch.testing.assert_close(before - model.weight.detach(), expected, rtol=1e-5, atol=1e-6)


class TestSensitivity:
    @pytest.mark.parametrize("mode", ["auto", "hooks", "ghost"])
    @pytest.mark.parametrize("attack", [1.0, 1e6, float("inf"), float("nan"), 1e30])
    def test_adding_a_sample_moves_the_sum_by_at_most_c(self, mode, attack):
        model = nn.Sequential(
            nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, CLASSES)
        )
        criterion = {"criterion": nn.CrossEntropyLoss(reduction="sum")} if mode == "ghost" else {}
        _, model, *rest = run("sum", noise_multiplier=0.0, model=model, grad_sample_mode=mode, **criterion)
        loss_fn = rest[2] if mode == "ghost" else nn.CrossEntropyLoss(reduction="sum")
        torch.manual_seed(1)
        x, y = torch.randn(5, 1, FEATURES), torch.randint(0, CLASSES, (5,))
        extra = torch.randn(1, 1, FEATURES) * attack

        def total(x, y):
            model.zero_grad()
            loss_fn(model(x), y).backward()
            return torch.cat([p.grad.flatten().double() for p in model.parameters()])

        moved = (total(torch.cat([x, extra]), torch.cat([y, y[:1]])) - total(x, y)).norm()
        assert float(moved) <= C * (1 + 1e-5)
        if attack == 1.0:
            assert float(moved) > 0


class TestFactors:
    def test_flat_factors(self):
        norms = torch.tensor([[3.0, 0.3, 0.0], [4.0, 0.4, 0.0]], dtype=torch.float64)
        factors = FlatClipping(1.0).factors(norms, ["w"] * len(norms))
        expected = torch.tensor([0.2, 1.0, 1.0], dtype=torch.float64)
        torch.testing.assert_close(factors, expected.expand(2, 3))

    def test_mean_is_undone_before_clipping(self):
        squares = torch.tensor([[4.0, 0.04]], dtype=torch.float64)
        found = clipping_factors(["w"], squares, FlatClipping(1.0), scale=2.0, real=2)
        torch.testing.assert_close(found.norms, torch.tensor([4.0, 0.4], dtype=torch.float64))
        torch.testing.assert_close(found.by_name["w"], torch.tensor([0.5, 2.0], dtype=torch.float64))
        assert found.scaled.tolist() == [True, False]

    def test_factors_that_float32_would_round_up_are_zero(self):
        """A denormal may be rounded by up to its own size; the sample's contribution would be as much too long."""
        squares = torch.tensor([[9e76, 1e40]], dtype=torch.float64)
        found = clipping_factors(["w"], squares, FlatClipping(2.4e-7), scale=1.0, real=2)
        assert float(found.by_name["w"][0]) == 0.0
        assert 0 < float(found.by_name["w"][1].float()) * 1e20 <= 2.4e-7 * (1 + 1e-6)

    def test_a_dummy_sample_gets_the_factor_zero(self):
        squares = torch.tensor([[4.0]], dtype=torch.float64)
        found = clipping_factors(["w"], squares, FlatClipping(1.0), scale=1.0, real=0)
        assert float(found.by_name["w"]) == 0.0


def test_noise_pays_for_rounding_of_as_many_records_as_are_expected(monkeypatch):
    """Of a public number: the batch that was drawn says nothing."""
    told = []

    def add(totals, **settings):
        told.append(settings["records"])
        return add_gaussian_noise(totals, **settings)

    monkeypatch.setattr("tacit.step.add_gaussian_noise", add)
    _, model, optimizer, loader = make()
    train(model, optimizer, loader, steps=2)
    assert told == [pytest.approx(8.0)] * 2
