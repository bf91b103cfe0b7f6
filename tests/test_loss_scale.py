"""A GradScaler around private training: what is released, and what its scale may depend on."""

import gc
import math
import warnings
from typing import Any

import pytest
import torch
from tests.modes import MODES, mode_settings
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils.data import DataLoader, TensorDataset

from tacit import BatchMemoryManager, PrivacyEngine
from tacit.errors import BudgetError, ConfigurationError, PrivacyError, SamplingError
from tacit.testing import single_sample_loop

RECORDS, D, K, BOUND = 24, 6, 3, 0.3


class Run:
    """A private run over a small network, and how a user of a GradScaler trains it."""

    def __init__(
        self,
        scaler: Any,
        mode: str = "auto",
        *,
        half: bool = False,
        dtype: torch.dtype = torch.float16,
        device: str = "cpu",
        **settings: Any,
    ) -> None:
        torch.manual_seed(0)
        self.scaler, self.device = scaler, device
        self.autocast = torch.autocast(device, dtype=dtype, enabled=half)
        network = lambda: nn.Sequential(nn.Linear(D, 7), nn.Tanh(), nn.Linear(7, K))  # noqa: E731
        self.plain = settings.pop("model", network)().to(device)
        x = settings.pop("x", torch.randn(RECORDS, D))
        data = TensorDataset(x, settings.pop("y", torch.arange(len(x)) % K))
        criterion = settings.pop("criterion", nn.CrossEntropyLoss())
        self.engine = PrivacyEngine(secure_mode=False)
        self.model, self.optimizer, self.loader, *rest = self.engine.make_private(
            module=self.plain,
            optimizer=torch.optim.SGD(self.plain.parameters(), lr=0.1),
            data_loader=DataLoader(data, batch_size=8, generator=torch.Generator().manual_seed(1)),
            criterion=criterion if mode == "ghost" else None,
            **{"noise_multiplier": 0.0, "max_grad_norm": BOUND, "grad_scaler": scaler} | mode_settings(mode) | settings,
        )
        self.criterion = rest[0] if rest else criterion

    def backward(self, x: Tensor, y: Tensor) -> "Run":
        with self.autocast:
            loss = self.criterion(self.model(x), y)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return self

    def step(self) -> "Run":
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return self

    @property
    def gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self.plain.parameters()])

    def batch(self) -> Any:
        return [value.to(self.device) for value in next(iter(self.loader))]

    def epoch(self) -> list[Tensor]:
        """What each step of an epoch releases."""
        released = []
        for x, y in self.loader:
            self.optimizer.zero_grad()
            self.backward(x, y).step()
            released.append(self.gradient.clone())
        return released


def scaler(exponent: int = 16, device: str = "cpu", **settings: Any) -> GradScaler:
    return GradScaler(device, init_scale=2.0**exponent, **settings)


@pytest.mark.parametrize("mode", [*MODES, "functorch"])
def test_what_is_released_is_that_of_the_plain_loss(mode):
    plain, scaled = Run(None, mode).epoch(), Run(scaler(), mode).epoch()
    assert len(plain) == 3
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kind", "scaled", "within"),
    [
        (torch.float16, True, 4e-3),
        (torch.float16, False, 4e-3),
        (torch.bfloat16, False, 3e-2),
        (None, False, 4e-3),  # without autocast: on a GPU in TF32
    ],
)
def test_in_half_precision_it_is_near_the_loop_over_single_samples(mode, kind, scaled, within, device):
    how = {"half": kind is not None, "dtype": kind or torch.float16, "device": device}
    run = Run(scaler(device=device) if scaled else None, mode, **how)
    x, y = run.batch()
    loss = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])  # noqa: E731
    clipping = mode_settings(mode).get("clipping", "flat")
    reference = single_sample_loop(run.plain, loss, (x, y), max_grad_norm=BOUND, clipping=clipping)
    run.backward(x, y).step()
    total = torch.cat([value.flatten() for value in reference.sums.values()])
    error = float((run.gradient.double() * 8 - total).norm() / total.norm())
    assert error < within
    torch.testing.assert_close(run.engine.stats.norms, reference.norms.cpu(), rtol=within, atol=0)


def test_small_gradients_survive():
    """What the scale is for: without it they are 0 in float16."""
    losses = {}
    for scale in (None, scaler(20)):
        run = Run(scale, half=True, loss_reduction="sum", max_grad_norm=1.0)
        run.criterion = lambda out, y: nn.functional.cross_entropy(out.float(), y, reduction="sum") * 2.0**-26
        run.backward(*run.batch())
        losses[scale is None] = run.engine.stats.norms
    assert not bool(losses[True].any())
    assert bool((losses[False] > 0).all())


def test_unscaling_before_the_step_for_a_look():
    plain, run = Run(None), Run(scaler())
    run.backward(*run.batch())
    pending = run.gradient.clone()
    run.scaler.unscale_(run.optimizer)
    torch.testing.assert_close(run.gradient * 2.0**16, pending, rtol=0, atol=0)
    run.step()
    plain.backward(*plain.batch()).step()
    torch.testing.assert_close(run.gradient, plain.gradient, rtol=1e-6, atol=1e-9)


def test_several_backwards_before_a_step_and_a_scale_that_changes_between_them():
    plain, run = Run(None, loss_reduction="sum"), Run(scaler(), loss_reduction="sum")
    for each in (plain, run):
        each.criterion = nn.CrossEntropyLoss(reduction="sum")
        x, y = each.batch()
        for part in (slice(0, 3), slice(3, None)):
            each.backward(x[part], y[part])
            if each is run:
                run.scaler.update(2.0**10)
        each.step()
    torch.testing.assert_close(run.gradient, plain.gradient, rtol=1e-6, atol=1e-9)


def test_pieces_of_a_batch_each_of_which_is_stepped():
    plain, run = Run(None), Run(scaler())
    for each in (plain, run):
        with BatchMemoryManager(data_loader=each.loader, max_physical_batch_size=3, optimizer=each.optimizer) as pieces:
            for x, y in pieces:
                each.optimizer.zero_grad()
                each.backward(x, y).step()
    assert run.engine.accountant.steps == 3
    torch.testing.assert_close(run.gradient, plain.gradient, rtol=1e-5, atol=1e-8)
    assert all(
        torch.allclose(p, q, rtol=1e-6) for p, q in zip(run.plain.parameters(), plain.plain.parameters(), strict=True)
    )


@pytest.mark.parametrize("exponent", [-30, -10, 0, 16, 30])
@pytest.mark.parametrize("mode", MODES)
def test_whatever_the_scale_no_sample_counts_for_more_than_the_bound(exponent, mode):
    run = Run(scaler(exponent), mode, sampling="full-batch", x=torch.randn(RECORDS, D) * 1e4)
    run.backward(*run.batch())
    assert float(run.gradient.double().norm()) <= RECORDS * BOUND * (1 + 1e-5)
    alone = Run(scaler(exponent), mode, sampling="full-batch", x=torch.randn(1, D) * 1e4)
    alone.backward(*alone.batch())
    assert float(alone.gradient.double().norm()) <= BOUND * (1 + 1e-5)


@pytest.mark.filterwarnings("ignore:after the first step")
def test_noise_is_of_its_size_whatever_the_scale():
    for exponent in (-8, 16):
        torch.manual_seed(0)
        model, own = nn.Linear(100, 100), scaler(exponent)
        _, optimizer, loader = PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(torch.zeros(8, 100)), batch_size=8),
            noise_multiplier=1.5,
            max_grad_norm=BOUND,
            loss_reduction="sum",
            sampling="full-batch",
            grad_scaler=own,
        )
        ((x,),) = loader
        own.scale((model(x) * 0.0).sum()).backward()
        own.step(optimizer)
        noise = torch.cat([p.grad.flatten().double() for p in model.parameters()])
        # 4.9 deviations: a false alarm in 1e6.
        assert abs(float(noise.square().mean()) / (1.5 * BOUND) ** 2 - 1) < 4.9 * math.sqrt(2 / len(noise)) + 2**-10


def weighted(out: Tensor, weights: Tensor) -> Tensor:
    return (out.float().square().sum(1) * weights).sum()


def overflowing(rows: slice) -> Any:
    """Settings of a run in which these records have gradients of 1e7 and more in float16, which ends at 65504."""
    weights = torch.ones(RECORDS)
    weights[rows] = 1e4
    return {"y": weights, "half": True, "loss_reduction": "sum", "sampling": "full-batch"}


@pytest.mark.parametrize("mode", MODES)
def test_a_record_that_overflows_contributes_nothing_and_decides_nothing(mode):
    """With it or without it: the others' sum, one release on record, and the scale that was."""
    runs = []
    for rows, first in ((slice(0, 1), 0), (slice(0, 0), 1)):
        run = Run(scaler(12, growth_interval=1), mode, criterion=weighted, **overflowing(rows))
        x, y = run.batch()
        runs.append(run.backward(x[first:], y[first:]).step())
        assert run.engine.accountant.steps == 1
        assert run.scaler.get_scale() == 2.0**12
    torch.testing.assert_close(runs[0].gradient, runs[1].gradient, rtol=1e-4, atol=1e-6)
    assert [run.engine.stats.nonfinite for run in runs] == [1, 0]
    assert bool(runs[0].gradient.any())


def test_where_all_overflow_noise_is_released_and_counts():
    run = Run(scaler(12), criterion=weighted, noise_multiplier=1.0, **overflowing(slice(None)))
    with pytest.warns(UserWarning, match="no sample of the first batch has a finite gradient.*smaller init_scale"):
        run.backward(*run.batch()).step()
    assert run.engine.accountant.steps == 1
    assert bool(torch.isfinite(run.gradient).all())
    assert bool(run.gradient.any())
    assert run.scaler.get_scale() == 2.0**12


def test_a_step_that_a_scaler_skips_releases_nothing_and_records_nothing():
    """It finds what is not finite only where somebody has written it."""
    run = Run(scaler(), noise_multiplier=1.0)
    run.backward(*run.batch())
    before = [p.detach().clone() for p in run.plain.parameters()]
    run.plain[0].weight.grad[0, 0] = math.inf
    run.step()
    assert run.engine.accountant.steps == 0
    assert all(torch.equal(p, q) for p, q in zip(run.plain.parameters(), before, strict=True))
    assert run.scaler.get_scale() == 2.0**16
    run.optimizer.zero_grad()
    run.backward(*run.batch()).step()
    assert run.engine.accountant.steps == 1


def test_parameters_in_bfloat16_may_have_one():
    released, records = [], torch.randn(RECORDS, D).bfloat16()
    for own in (None, scaler()):
        run = Run(own, model=lambda: nn.Linear(D, K).bfloat16(), x=records)
        run.criterion = lambda out, y: nn.functional.cross_entropy(out.float(), y)
        x, y = run.batch()
        run.backward(x, y).step()
        released.append(run.gradient)
    assert torch.equal(*released)


def test_the_scale_stays_until_the_run_ends():
    own = scaler(growth_interval=1, growth_factor=4.0, backoff_factor=0.25)
    saved = own.state_dict()
    run = Run(own)
    for _ in range(3):
        run.epoch()
        own.load_state_dict(saved)  # which says that it grows
    assert own.get_scale() == 2.0**16
    run.engine.detach()
    assert (own.get_growth_factor(), own.get_backoff_factor()) == (4.0, 0.25)


@pytest.mark.parametrize("first", [0, 1])
def test_a_scaler_of_two_runs_is_held_until_both_end(first):
    own = scaler(growth_factor=4.0, backoff_factor=0.25)
    runs = [Run(own), Run(own)]
    for run in runs:
        run.backward(*run.batch())
    for run in runs:
        own.step(run.optimizer)
    runs[first].engine.detach()
    own.update()
    assert (own.get_growth_factor(), own.get_backoff_factor()) == (1.0, 1.0)
    runs[1 - first].engine.detach()
    assert (own.get_growth_factor(), own.get_backoff_factor()) == (4.0, 0.25)
    own.set_growth_factor(8.0)  # which is the user's again
    for run in runs:
        run.engine.detach()
    again = Run(own)
    assert own.get_growth_factor() == 1.0
    again.engine.detach()
    assert (own.get_growth_factor(), own.get_backoff_factor()) == (8.0, 0.25)


def test_a_run_that_was_dropped_does_not_hold_its_scaler():
    own = scaler(growth_factor=4.0)
    run, other = Run(own), Run(own)
    del run
    gc.collect()
    other.engine.detach()
    assert own.get_growth_factor() == 4.0


def test_a_scaler_that_is_not_enabled_is_none():
    own = GradScaler("cpu", enabled=False)
    plain, run = Run(None), Run(own)
    assert all(torch.equal(a, b) for a, b in zip(plain.epoch(), run.epoch(), strict=True))
    run.optimizer.zero_grad()
    run.backward(*run.batch()).optimizer.step()


def test_a_step_that_was_refused_and_is_tried_again():
    run = Run(scaler(), noise_multiplier=1.0)
    run.engine.budget(1e-3, 1e-5)
    run.backward(*run.batch())
    pending = run.gradient.clone()
    for error in (BudgetError, SamplingError):  # and not that the scaler was left out
        with pytest.raises(error):
            run.scaler.step(run.optimizer)
        assert torch.equal(run.gradient, pending)
    assert run.engine.accountant.steps == 0


class Factors(nn.Module):
    """Two tables, of whose gradients all is 0 but four rows each."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(40_000, 4), nn.Embedding(20_000, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.users(x[:, 0]) * self.items(x[:, 1])).sum(1)


def padded() -> nn.Module:
    """A layer that sees pictures with a black frame: all at its edges is 0 in its gradient."""
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 256, bias=False))


def sparse_run(model: Any, exponent: int = 16, **settings: Any) -> Run:
    torch.manual_seed(0)
    if model is padded:
        x, y = torch.zeros(4, 32, 32), torch.arange(4)
        x[:, 2:30, 2:30] = torch.rand(4, 28, 28)
        criterion: Any = nn.CrossEntropyLoss(reduction="sum")
    else:
        x, y = torch.tensor([[3, 5], [3001, 2001], [777, 91], [39_998, 19_999]]), torch.randn(4)
        criterion = nn.MSELoss(reduction="sum")
    settings = {"loss_reduction": "sum", "sampling": "full-batch", "max_grad_norm": 1.0} | settings
    return Run(scaler(exponent), model=model, x=x, y=y, criterion=criterion, **settings)


@pytest.mark.parametrize("model", [Factors, padded])
def test_most_of_a_gradient_is_zero(model):
    """What was not divided is not multiplied, where every number of a part that is looked at is 0."""
    past = sparse_run(model)
    past.backward(*past.batch())
    pending = past.gradient.clone()
    assert bool(pending.any())
    with pytest.raises(ConfigurationError, match="stepped without it"):
        past.optimizer.step()
    assert torch.equal(past.gradient, pending)
    proper = sparse_run(model)
    proper.backward(*proper.batch()).step()
    torch.testing.assert_close(proper.gradient, pending, rtol=1e-6, atol=0)


@pytest.mark.parametrize("model", [Factors, padded])
def test_most_of_a_gradient_is_zero_and_a_refused_step_is_tried_again(model):
    run = sparse_run(model, noise_multiplier=1.0)
    run.engine.budget(1e-3, 1e-5)
    run.backward(*run.batch())
    pending = run.gradient.clone()
    for _ in range(3):
        with pytest.raises((BudgetError, SamplingError)):
            run.scaler.step(run.optimizer)
        assert torch.equal(run.gradient, pending)


@pytest.mark.parametrize("clear", [Tensor.zero_, lambda gradient: gradient.data.zero_()])
def test_one_gradient_that_was_cleared_before_the_step(clear):
    plain, run = Run(None), Run(scaler())
    for each in (plain, run):
        each.backward(*each.batch())
        clear(each.plain[0].bias.grad)
        each.step()
    assert not bool(run.plain[0].bias.grad.any())
    torch.testing.assert_close(run.gradient, plain.gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:after the first step")
def test_a_gradient_that_is_zero_is_released_with_the_scaler_or_past_it():
    for past in (False, True):
        run = Run(scaler(), noise_multiplier=1.0, sampling="full-batch")
        x, _ = run.batch()
        run.scaler.scale((run.model(x) * 0.0).sum()).backward()
        run.optimizer.step() if past else run.step()
        assert run.engine.accountant.steps == 1
        assert bool(run.gradient.any())
        assert float(run.gradient.abs().max()) < 10 * BOUND


def test_empty_batches_are_steps_like_any_other():
    run = Run(scaler(), noise_multiplier=1.0)
    x, y = run.batch()
    run.backward(x[:0], y[:0]).step()
    assert run.engine.accountant.steps == 1


def test_calibrated_runs_take_one_too():
    model, own = nn.Linear(D, K), scaler()
    engine = PrivacyEngine()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few records
        _, optimizer, loader = engine.make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(torch.randn(RECORDS, D)), batch_size=8),
            target_epsilon=3.0,
            target_delta=1e-2,
            max_grad_norm=1.0,
            epochs=1,
            grad_scaler=own,
        )
    for (x,) in loader:
        optimizer.zero_grad()
        own.scale(model(x).square().mean()).backward()
        own.step(optimizer)
        own.update()
    assert engine.accountant.steps == 3


class TestRefusals:
    def test_what_is_no_scaler(self):
        with pytest.raises(ConfigurationError, match=r"grad_scaler=65536.0: it is a torch.amp.GradScaler"):
            Run(65536.0)

    @pytest.mark.parametrize("scale", [3.0, 0.0, 2.0**40, math.inf])
    def test_scales_that_cannot_be_undone(self, scale):
        with pytest.raises(ConfigurationError, match="must be a power of two"):
            Run(GradScaler("cpu", init_scale=scale))
        run = Run(scaler())
        x, y = run.batch()
        run.scaler.scale(torch.zeros(()))
        run.scaler.update(scale)
        loss = run.scaler.scale(run.criterion(run.model(x), y))
        with pytest.raises(ConfigurationError, match="must be a power of two"):
            loss.backward()
        late = Run(scaler())
        late.backward(*late.batch())
        late.scaler.update(scale)
        with pytest.raises(ConfigurationError, match="must be a power of two"):
            late.optimizer.step()

    def test_parameters_in_float16(self):
        model = nn.Linear(D, K).half()
        with pytest.raises(ConfigurationError, match="'weight' is float16, and a GradScaler does not unscale"):
            PrivacyEngine().make_private(
                module=model,
                optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
                data_loader=DataLoader(TensorDataset(torch.randn(RECORDS, D)), batch_size=8),
                noise_multiplier=1.0,
                max_grad_norm=1.0,
                grad_scaler=scaler(),
            )

    def test_a_scaler_that_make_private_does_not_know(self):
        run = Run(None)
        run.scaler = scaler()
        run.backward(*run.batch())
        with pytest.raises(PrivacyError, match=r"make_private\(\.\.\., grad_scaler=scaler\)"):
            run.step()
        assert run.engine.accountant.steps == 0

    def test_another_scaler(self):
        run = Run(scaler())
        run.scaler = scaler(10)
        run.backward(*run.batch())
        with pytest.raises(PrivacyError, match="was changed after"):
            run.step()

    def test_a_step_past_the_scaler(self):
        run = Run(scaler())
        run.criterion(run.model((batch := run.batch())[0]), batch[1]).backward()
        with pytest.raises(ConfigurationError, match="stepped without it"):
            run.optimizer.step()
        assert run.engine.accountant.steps == 0

    @pytest.mark.parametrize("change", [lambda g: g.mul_(0.5), lambda g: g.neg_(), lambda g: g.data.mul_(3.0)])
    def test_gradients_that_are_changed_between_unscaling_and_step(self, change):
        run = Run(scaler())
        run.backward(*run.batch())
        run.scaler.unscale_(run.optimizer)
        change(run.plain[0].weight.grad)
        with pytest.raises(PrivacyError, match="was changed after"):
            run.step()
        assert run.engine.accountant.steps == 0

    def test_unscaling_twice_by_hand(self):
        run = Run(scaler())
        run.backward(*run.batch())
        run.scaler.unscale_(run.optimizer)
        with torch.no_grad():
            torch._foreach_mul_([p.grad for p in run.plain.parameters()], 2.0**-16)
        with pytest.raises(PrivacyError, match="was changed after"):
            run.step()
