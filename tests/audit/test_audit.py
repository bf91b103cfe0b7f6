"""A white-box audit of the real training loop: thousands of canaries say how much is really revealed.

Canary i is a record whose gradient lies along coordinate i alone. Half of the canaries are in the data set. Noise is
independent in each coordinate, so one run is one trial for each canary: who sees all releases guesses, from coordinate
i, whether canary i was there. The bounds on their error rates hold with probability 99.9 % (Clopper and Pearson), the
threshold is chosen on other canaries than it is judged on, and so a lower bound above the claimed ε proves a bug.
Draws and noise come from fixed seeds: what passes once passes always.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.accounting import PoissonRelease
from tacit.accounting.gaussian import gaussian_epsilon
from tacit.capture import Pass
from tacit.clipping import FlatClipping
from tacit.errors import SamplingError
from tacit.sampling import (
    BallsInBinsSampling,
    CyclicPoissonSampling,
    FullBatchSampling,
    PoissonSampling,
    Sampling,
    TruncatedPoissonSampling,
    UserPoissonSampling,
)

CANARIES = 10_000  # on each side
DELTA = 1e-5
BOUND, NOISE = 0.5, 1.0
USERS = UserPoissonSampling(torch.arange(CANARIES).repeat_interleave(3), 0.2, 10, most=3)
Statistic = Callable[[Tensor], Tensor]


class Canaries(nn.Module):
    """Sample (T, 1) of canary numbers → (): its gradient is a multiple of one coordinate of ``weight``."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2 * CANARIES, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return 40 * self.table(ids).sum((1, 2))


def releases(
    *,
    rate: float,
    steps: int,
    tokens: int = 1,
    noise: float = NOISE,
    plant: Callable | None = None,
    sampling: Sampling | None = None,
    copies: int = 1,
):
    """Train; return what each step released, in units of the bound, (steps, 2 · CANARIES), and the claimed ε."""
    torch.manual_seed(0)
    model = Canaries()
    # Each is in the data set as often as ``copies`` says, and the others are not.
    ids = torch.arange(CANARIES).repeat_interleave(copies)[:, None].expand(-1, tokens)
    size = round(CANARIES * rate)
    loader = DataLoader(
        TensorDataset(ids),
        batch_size=size,
        generator=torch.Generator().manual_seed(5),
        drop_last=size < CANARIES and sampling is None,
    )
    engine = PrivacyEngine()
    private, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=loader,
        noise_multiplier=noise,
        max_grad_norm=BOUND,
        loss_reduction="sum",
        noise_generator=torch.Generator().manual_seed(11),
        sampling=sampling,
    )
    if plant is not None:
        plant(engine)
    seen = []
    while len(seen) < steps:
        for (batch,) in loader:
            optimizer.zero_grad()
            private(batch).sum().backward()
            optimizer.step()
            seen.append(private.table.weight.grad.flatten() / BOUND)
    return torch.stack(seen[:steps]), engine.get_epsilon(DELTA)


def rates(inside: np.ndarray, outside: np.ndarray, threshold: float) -> tuple[float, float]:
    """True and false positive rates of a threshold: a lower and an upper bound, 99.9 % together."""
    n, hits, alarms = len(inside), int((inside > threshold).sum()), int((outside > threshold).sum())
    lowest = float(beta.ppf(5e-4, hits, n - hits + 1)) if hits else 0.0
    highest = float(beta.ppf(1 - 5e-4, alarms + 1, n - alarms)) if alarms < n else 1.0
    return lowest, highest


def error_rates(scores: Tensor, worth: Callable[[float, float], float]) -> tuple[float, float]:
    """The rates of the threshold that is worth most on one half of the canaries, judged on the other."""
    inside, outside = scores[:CANARIES].numpy(), scores[CANARIES:].numpy()
    half = CANARIES // 2
    candidates = np.unique(np.quantile(outside[:half], np.linspace(0.3, 1, 100)))
    best = max(candidates, key=lambda t: worth(*rates(inside[:half], outside[:half], t)))
    return rates(inside[half:], outside[half:], best)


def separation(lowest: float, highest: float) -> float:
    """μ of the Gaussian mechanism that has these rates."""
    return float(max(norm.ppf(lowest) - norm.ppf(highest), 0.0)) if lowest > 0 and highest < 1 else 0.0


def advantage(lowest: float, highest: float) -> float:
    """ε of any mechanism that has these rates: TPR ≤ e^ε FPR + δ."""
    return math.log(max(lowest - DELTA, 1e-300) / highest)


def total(seen: Tensor) -> Tensor:
    return seen.sum(0)


def largest_change(seen: Tensor) -> Tensor:
    return seen.max(0).values - seen.min(0).values


def gaussian_bound(seen: Tensor) -> float:
    """A lower bound on ε if the run is some Gaussian mechanism."""
    return gaussian_epsilon(separation(*error_rates(total(seen), separation)), DELTA)


def any_bound(seen: Tensor, statistic: Statistic = total) -> float:
    return advantage(*error_rates(statistic(seen), advantage))


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 10), (2.0, 3)])
def test_full_batches_reveal_most_of_what_is_claimed_and_never_more(noise: float, steps: int) -> None:
    seen, claimed = releases(rate=1.0, steps=steps, noise=noise)
    assert 0.6 * claimed < gaussian_bound(seen) <= claimed
    assert any_bound(seen) <= claimed


@pytest.mark.parametrize(("rate", "steps"), [(0.5, 6), (0.1, 30)])
def test_poisson_sampling_reveals_no_more_than_is_claimed(rate: float, steps: int) -> None:
    seen, claimed = releases(rate=rate, steps=steps)
    for statistic in (total, largest_change, lambda releases: releases.max(0).values):
        assert any_bound(seen, statistic) <= claimed


@pytest.mark.parametrize(
    ("sampling", "steps", "copies"),
    [
        (BallsInBinsSampling(CANARIES, 5), 10, 1),
        (TruncatedPoissonSampling(CANARIES, 0.2, 10, 2100), 10, 1),
        (CyclicPoissonSampling(CANARIES, 2, 0.4, 10), 10, 1),
        (FullBatchSampling(CANARIES), 4, 1),
        (USERS, 10, 3),
    ],
    ids=["balls in bins", "truncated", "cyclic", "full", "users"],
)
def test_other_samplers_reveal_something_and_no_more_than_is_claimed(sampling, steps, copies) -> None:
    seen, claimed = releases(rate=0.2, steps=steps, sampling=sampling, copies=copies, noise=1.5)
    for statistic in (total, lambda releases: releases.max(0).values):
        assert any_bound(seen, statistic) <= claimed
    assert any_bound(seen) > 0.1 * claimed


# Bugs, planted


def test_records_of_a_user_that_are_clipped_each_by_itself_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UserPoissonSampling, "owners", lambda self, indices: None)
    seen, claimed = releases(rate=0.2, steps=10, sampling=USERS, copies=3, noise=1.5)
    assert any_bound(seen) > claimed


def test_blank_rows_that_count_as_records_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pass, "real_units", property(lambda self: self.clipped_units))
    with pytest.raises(SamplingError, match="samples were differentiated"):
        releases(rate=0.2, steps=2, sampling=TruncatedPoissonSampling(CANARIES, 0.2, 10, 2500))


def scale_noise(engine: PrivacyEngine, factor: Callable[[], float]) -> None:
    noise = engine._attached.noise
    each = noise.each
    noise.each = lambda jobs, device: each([replace(job, deviation=job.deviation * factor()) for job in jobs], device)


def noise_divided_by_microbatches(engine: PrivacyEngine) -> None:
    scale_noise(engine, lambda: 1 / 4)


def test_noise_that_is_divided_by_the_number_of_microbatches_is_caught() -> None:
    seen, claimed = releases(rate=1.0, steps=1, plant=noise_divided_by_microbatches)
    assert gaussian_bound(seen) > claimed


@pytest.mark.parametrize("tokens", [1, 4])
def test_clipping_after_the_sum_and_clipping_of_tokens_are_caught(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Each canary then leaves more than the bound: its whole gradient, or the bound for each of its tokens."""
    factors = FlatClipping.factors
    grown = (lambda self, norms, names: torch.ones_like(norms)) if tokens == 1 else None
    per_token = grown or (lambda self, norms, names: factors(self, norms / tokens, names))
    monkeypatch.setattr(FlatClipping, "factors", per_token)
    seen, claimed = releases(rate=1.0, steps=1, tokens=tokens, noise=2.0)
    assert gaussian_bound(seen) > claimed


def test_noise_that_is_scaled_by_the_realised_batch_is_caught() -> None:
    """Half of the records are drawn, and so half of the noise."""

    def plant(engine: PrivacyEngine) -> None:
        draws = engine._attached.draws
        scale_noise(engine, lambda: draws.current.records / CANARIES / 4)

    seen, claimed = releases(rate=0.5, steps=2, plant=plant, noise=1.5)
    assert any_bound(seen) > claimed


def test_noise_of_one_seed_in_every_step_is_caught() -> None:
    def plant(engine: PrivacyEngine) -> None:
        noise = engine._attached.noise
        state = noise._given.get_state()
        each = noise.each
        noise.each = lambda *args: (noise._given.set_state(state), each(*args))[1]

    seen, claimed = releases(rate=0.5, steps=4, plant=plant, noise=3.0)
    assert any_bound(seen, largest_change) > claimed


def test_a_sampling_rate_that_is_understated_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        PoissonSampling, "event", lambda self, noise, draws: PoissonRelease(noise, self.sample_rate / 20)
    )
    seen, claimed = releases(rate=0.5, steps=20, noise=1.0)
    assert any_bound(seen) > claimed
