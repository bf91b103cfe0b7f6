"""Parameters in bfloat16 and float16: their clipped sums are float32's until there is noise."""

from typing import Any

import pytest
import torch
from tests.modes import MODES, mode_settings
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tacit.step
from tacit import BatchMemoryManager, PrivacyEngine
from tacit.capture.unrounded import UnroundedSums
from tacit.errors import PrivacyError
from tacit.mechanisms import add_gaussian_noise
from tacit.testing import private_gradients
from tacit.uses import TUNER

NARROW = (torch.bfloat16, torch.float16)
BOUND, D, K = 0.25, 6, 5


class Run:
    """A linear model in a narrow type, whose gradients are products ``t ⊗ x`` of what the records hold.

    Attributes:
        totals: what was given to the mechanism in the last release.
        noisy: what it returned.
        shown: ``.grad`` after the last backward.
    """

    def __init__(self, patch: pytest.MonkeyPatch, x: Tensor, t: Tensor, mode: str = "auto", noise: float = 0.0) -> None:
        self.model = nn.Linear(D, K, bias=False).to(x.dtype)
        _, self.optimizer, self.loader, *rest = PrivacyEngine().make_private(
            module=self.model,
            optimizer=torch.optim.SGD(self.model.parameters(), lr=0.0),
            data_loader=DataLoader(TensorDataset(x, t), batch_size=4),
            noise_multiplier=noise,
            max_grad_norm=BOUND,
            loss_reduction="sum",
            sampling="full-batch",
            criterion=total_of if mode == "ghost" else None,
            grad_sample_mode=mode if mode == "ghost" else "auto",
            clipping="per_layer" if mode == "per_layer" else "flat",
            memory_budget=1 if mode == "bounded" else None,
        )
        self.criterion = rest[0] if rest else total_of
        self.totals: list[Tensor] = []
        self.noisy: list[Tensor] = []
        patch.setattr(tacit.step, "add_gaussian_noise", self._noted)
        self.rows = self._rows()

    def _noted(self, totals: list[Tensor], **rest: Any) -> list[Tensor]:
        self.totals = [total.clone() for total in totals]
        self.noisy = add_gaussian_noise(totals, **rest)
        return self.noisy

    def _rows(self) -> tuple[Tensor, Tensor]:
        ((x, t),) = self.loader
        return x, t

    def backward(self, first: int, last: int | None = None) -> "Run":
        part = slice(first, first + 1 if last is None else last)
        x, t = (value[part] for value in self.rows)
        self.criterion(self.model(x), t).backward()
        self.shown = self.model.weight.grad.clone()
        return self

    def step(self) -> Tensor:
        """The total that was released."""
        self.optimizer.step()
        return self.totals[0].double()


def total_of(out: Tensor, t: Tensor) -> Tensor:
    return (out * t).sum()


def records(dtype: torch.dtype, count: int = 12) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(count, D).to(dtype), torch.randn(count, K).to(dtype)


def clipped(x: Tensor, t: Tensor) -> Tensor:
    """The clipped sum, in float64."""
    total = torch.zeros(K, D, dtype=torch.float64)
    for own_x, own_t in zip(x.double(), t.double(), strict=True):
        gradient = torch.outer(own_t, own_x)
        total += gradient * min(1.0, BOUND / float(gradient.norm()))
    return total


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("mode", ["auto", "ghost", "per_layer", "bounded"])
def test_what_is_released_is_rounded_once(monkeypatch, dtype, mode):
    """Each record alone moves the sum by less than half of its last bit: rounded every time, it would stand still."""
    x, t = records(dtype, 40)
    x[1:], t[1:] = x[:1] / 64, t[:1] / 64
    x[0] *= 1024
    run = Run(monkeypatch, x, t, mode)
    for row in range(40):
        run.backward(row)
    total = run.step()
    expected = clipped(x, t)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-7)
    assert float((run.shown.double() - expected).norm()) > 1e-3 * float(expected.norm())
    assert run.model.weight.grad.dtype == dtype
    assert torch.equal(run.model.weight.grad, run.noisy[0].to(dtype))


@pytest.mark.parametrize("dtype", NARROW)
def test_one_sample_moves_the_sum_by_no_more_than_the_bound(monkeypatch, dtype):
    """A thousand records that pull one way: rounded, the sum would move by twice the bound in bfloat16."""
    x, t = records(dtype, 1024)
    x, t = (x.abs() + 1) * 8, (t.abs() + 1) * 8
    whole, less = (Run(monkeypatch, x[:count], t[:count]).backward(0, count) for count in (1024, 1023))
    monkeypatch.setattr(tacit.step, "add_gaussian_noise", whole._noted)
    one = whole.step()
    monkeypatch.setattr(tacit.step, "add_gaussian_noise", less._noted)
    moved = float((one - less.step()).norm())
    assert moved <= BOUND * (1 + 6e-5)
    if dtype == torch.bfloat16:
        assert float((whole.shown.double() - less.shown.double()).norm()) > 1.5 * BOUND


def test_noise_is_added_before_anything_is_rounded(monkeypatch):
    x, t = records(torch.bfloat16)
    run = Run(monkeypatch, x, t, noise=1.0).backward(0, 12)
    run.step()
    assert run.noisy[0].dtype == torch.float32
    assert torch.equal(run.model.weight.grad, run.noisy[0].bfloat16())
    assert not torch.allclose(run.noisy[0], run.totals[0])


def cleared(run: Run) -> None:
    run.optimizer.zero_grad()


def cleared_in_place(run: Run) -> None:
    run.optimizer.zero_grad(set_to_none=False)


def taken_away(run: Run) -> None:
    run.model.weight.grad = None


def zeroed(run: Run) -> None:
    run.model.weight.grad.zero_()


def zeroed_without_a_trace(run: Run) -> None:
    run.model.weight.grad.data.zero_()


def multiplied_by_zero(run: Run) -> None:
    torch._foreach_mul_([run.model.weight.grad], 0.0)


CLEARED = [taken_away, zeroed, zeroed_without_a_trace, multiplied_by_zero]


@pytest.mark.parametrize("forget", [cleared, cleared_in_place, *CLEARED])
def test_a_sum_lives_as_long_as_its_gradient(monkeypatch, forget):
    x, t = records(torch.bfloat16)
    run = Run(monkeypatch, x, t).backward(0, 5)
    forget(run)
    total = run.backward(5, 9).step()
    torch.testing.assert_close(total, clipped(x[5:9], t[5:9]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("forget", CLEARED)
def test_a_gradient_that_was_cleared_is_released_as_zero(monkeypatch, forget):
    run = Run(monkeypatch, *records(torch.bfloat16)).backward(0, 5)
    forget(run)
    assert not bool(run.step().any())


def test_a_sum_that_rounds_to_zero_is_released_all_the_same(monkeypatch):
    x, t = records(torch.float16)
    run = Run(monkeypatch, x * 2.0**-15, t * 2.0**-15).backward(0, 5)
    assert not bool(run.shown.any())
    torch.testing.assert_close(run.step(), clipped(x[:5] * 2.0**-15, t[:5] * 2.0**-15), rtol=1e-5, atol=0)


def test_a_sum_does_not_outlive_a_change_of_type(monkeypatch):
    x, t = records(torch.bfloat16)
    run = Run(monkeypatch, x, t).backward(0, 5)
    run.model.weight.grad = None
    run.model.float()
    run.rows = x.float(), t.float()
    total = run.backward(5, 9).step()
    torch.testing.assert_close(total, clipped(x[5:9], t[5:9]), rtol=1e-5, atol=1e-7)


def test_a_sum_does_not_outlive_the_release_before_which_its_parameter_was_frozen():
    x, _ = records(torch.bfloat16)
    model, engine = nn.Linear(D, K).bfloat16(), PrivacyEngine()
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        data_loader=DataLoader(TensorDataset(x), batch_size=4),
        noise_multiplier=0.0,
        max_grad_norm=BOUND,
        sampling="full-batch",
    )
    ((rows,),) = loader
    model(rows).sum().backward()
    model.weight.requires_grad_(False)
    optimizer.step()
    assert model.weight.grad is None
    guard = engine._attached.session.guard
    zeros = torch.zeros_like(model.weight)
    model.weight.grad = zeros
    guard.accept("weight", zeros)  # as if they were what a backward has left
    assert guard.take("weight", model.weight).data_ptr() == zeros.data_ptr()


def test_zeros_that_a_reentrant_checkpoint_makes_bring_no_sum_back(monkeypatch):
    run = Run(monkeypatch, *records(torch.bfloat16)).backward(0, 5)
    run.model.weight.grad = None
    (run.model.weight * 0).sum().backward()
    assert not bool(run.step().any())


def test_what_is_added_to_a_released_gradient_is_added_to_what_it_was():
    sums, total = UnroundedSums(), torch.full((4,), 2.0**-10)
    released = torch.ones(4, dtype=torch.bfloat16)
    for before in (released, released):  # where the second stands still, too
        sums.expect("weight", total.clone(), total.bfloat16())
        sums.arrived("weight", before)
    assert torch.equal(sums.take("weight"), 1 + 2 * total)
    assert sums.take("weight") is None


def test_a_gradient_that_was_changed_is_refused_as_ever(monkeypatch):
    run = Run(monkeypatch, *records(torch.bfloat16)).backward(0, 5)
    run.model.weight.grad.mul_(2)
    with pytest.raises(PrivacyError, match="was changed after"):
        run.step()


def test_pieces_of_a_batch(monkeypatch):
    x, t = records(torch.bfloat16)
    run = Run(monkeypatch, x, t)
    with BatchMemoryManager(data_loader=run.loader, max_physical_batch_size=5, optimizer=run.optimizer) as pieces:
        for run.rows in pieces:
            run.optimizer.zero_grad()
            run.backward(0, 5)
            run.optimizer.step()
    torch.testing.assert_close(run.totals[0].double(), clipped(x, t), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["gram", "stored"])
@pytest.mark.parametrize("dtype", NARROW)
def test_gradients_whose_gram_matrices_vanish_in_their_own_type(mode, form, dtype):
    """Two positions that nearly cancel: in bfloat16 the Gram identity gives a norm of 0, and no clipping."""
    width, step, bound = 16, torch.finfo(dtype).eps, 2.0**-7
    a, g = torch.ones(3, 2, width, dtype=dtype), torch.full((3, 2, width), 8.0, dtype=dtype)
    a[:, 1] += step
    g[:, 1] *= -1
    grams = [value @ value.transpose(1, 2) for value in (a, g)]
    assert not bool((grams[0] * grams[1]).sum((1, 2)).any())
    with TUNER.forced(form):
        norms, sums = private_gradients(
            nn.Linear(width, width, bias=False).to(dtype),
            lambda m, b, criterion: criterion(m(b[0]) * b[1], b[0]),
            (a, g),
            max_grad_norm=bound,
            loss_reduction="sum",
            criterion=lambda out, _: out.float().flatten(1).sum(),
            **mode_settings(mode),
        )
    true = width * step * 8
    torch.testing.assert_close(norms, torch.full((3,), true, dtype=torch.float64), rtol=1e-6, atol=0)
    assert float(sums["weight"].double().norm()) <= 3 * bound * (1 + 2.0**-8)
