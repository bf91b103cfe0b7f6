"""PLD is tight where floats allow and falls back to RDP where they do not."""

import math
import time

import pytest

from tacit.accounting import PLDAccountant, PoissonRelease, RDPAccountant, epsilon
from tacit.accounting.pld import chi_square, limit_distinct


def test_known_value():
    found = epsilon(noise_multiplier=1.0, sample_rate=0.01, steps=10**4, delta=1e-5)
    assert found == pytest.approx(6.18771, rel=1e-3)


def test_long_runs_compose_like_short_ones():
    # 2 · (2¹⁴ − 1) steps take the pairwise path, its halves do not.
    halves = PLDAccountant()
    halves.record(PoissonRelease(2.0, 0.002), 2**14 - 1)
    halves.record(PoissonRelease(2.0 * (1 + 1e-12), 0.002), 2**14 - 1)
    whole = epsilon(noise_multiplier=2.0, sample_rate=0.002, steps=2**15 - 2, delta=1e-6)
    assert halves.get_epsilon(1e-6) == pytest.approx(whole, rel=1e-6)
    longer = epsilon(noise_multiplier=2.0, sample_rate=0.002, steps=2**15 - 1, delta=1e-6)
    assert whole < longer < whole * 1.001


def test_monotone_in_steps_and_noise():
    by_steps = [epsilon(noise_multiplier=1.0, sample_rate=0.05, steps=steps, delta=1e-5) for steps in (1, 2, 30, 31)]
    assert by_steps == sorted(set(by_steps))
    by_noise = [epsilon(noise_multiplier=noise, sample_rate=0.05, steps=30, delta=1e-5) for noise in (4, 2, 1.01, 1)]
    assert by_noise == sorted(set(by_noise))


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [
        (1.0, 0.01, 1000, 1e-13),
        (0.01, 0.01, 10, 1e-5),
        (1e-4, 0.5, 10, 1e-5),
        (0.5, 0.9, 10**4, 1e-5),
        (1e4, 1e-6, 1, 1e-5),
        (1.0, 1e-9, 100, 1e-10),
        (0.3, 0.999999, 3, 1e-7),
    ],
)
def test_extremes_are_finite_and_within_rdp(noise, rate, steps, delta):
    plan = {"noise_multiplier": noise, "sample_rate": rate, "steps": steps, "delta": delta}
    found, bound = epsilon(**plan), epsilon(**plan, accountant="rdp")
    assert 0.0 <= found <= bound < math.inf


def test_a_schedule_of_many_noise_levels_is_bounded_cheaply():
    pld, rdp = PLDAccountant(), RDPAccountant()
    for step in range(100):
        pld.step(noise_multiplier=1.5 + step / 200, sample_rate=0.01)
        if step % 10 == 0:
            rdp.record(PoissonRelease(1.5 + step / 200, 0.01), 10)
    start = time.perf_counter()
    found = pld.get_epsilon(1e-5)
    assert time.perf_counter() - start < 10
    worst = epsilon(noise_multiplier=1.5, sample_rate=0.01, steps=100, delta=1e-5)
    best = epsilon(noise_multiplier=1.995, sample_rate=0.01, steps=100, delta=1e-5)
    assert best < found < min(worst, rdp.get_epsilon(1e-5))


def test_limit_distinct_only_raises_the_cost():
    sampled = {PoissonRelease(1 + n / 50, 0.01 * (1 + n / 60)): n + 1 for n in range(50)}
    limited = limit_distinct(sampled)
    assert len(limited) <= 32
    assert sum(limited.values()) == sum(sampled.values())
    for release in sampled:
        assert any(
            worse.noise_multiplier <= release.noise_multiplier and worse.sample_rate >= release.sample_rate
            for worse in limited
        )


def test_chi_square_of_one_draw_matches_the_mixture_formula():
    release = PoissonRelease(1.3, 0.2)
    assert chi_square(release) == pytest.approx(0.04 * math.expm1(1 / 1.69))
    assert chi_square(PoissonRelease(1.3, 0.2, 2)) > 2 * chi_square(release)
    assert chi_square(PoissonRelease(1e-3, 0.2)) == chi_square(PoissonRelease(1e-3, 0.2, 2)) == math.inf


def test_answers_stay_fast_while_the_history_grows():
    accountant = PLDAccountant()
    accountant.record(PoissonRelease(1.0, 0.05), 599)
    accountant.get_epsilon(1e-5)
    accountant.record(PoissonRelease(1.0, 0.05))
    start = time.perf_counter()
    accountant.get_epsilon(1e-5)
    assert time.perf_counter() - start < 0.5
