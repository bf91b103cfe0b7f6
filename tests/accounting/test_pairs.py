"""Each kind of release against its pair, integrated by brute force."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant as TheirAccountant
from scipy.stats import binom, norm

from tacit.accounting import (
    BallsInBinsRelease,
    CyclicRelease,
    EpochRelease,
    FixedSizeRelease,
    PoissonRelease,
    TruncatedRelease,
    create_accountant,
    epsilon_interval,
    trade_off,
)
from tacit.accounting.composition import compose
from tacit.accounting.intervals import interval_of
from tacit.accounting.pairs import EpochPair
from tacit.errors import ConfigurationError

LINE = np.linspace(-40, 40, 400_001)
EPSILONS = (0.01, 0.3, 1.0, 2.5)


def mixture(noise, chances, shift=1.0):
    return sum(chance * norm.pdf(LINE, i * shift, noise) for i, chance in enumerate(chances))


def stick(p, q, epsilon):
    """``∫ (p − e^ε q)₊``."""
    return float(np.clip(p - math.exp(epsilon) * q, 0, None).sum() * (LINE[1] - LINE[0]))


def holds(history, adjacency, delta, epsilon):
    """The ε at a δ that was integrated for it is in the interval."""
    found = interval_of(history, delta, adjacency)
    assert found.lower <= epsilon * (1 + 1e-6) + 1e-9
    assert epsilon * (1 - 1e-6) - 1e-9 <= found.upper
    return found


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize(("noise", "rate", "draws"), [(0.7, 0.1, 1), (2.0, 0.3, 3), (1.0, 1.0, 1), (1.0, 1e-3, 1)])
def test_a_replaced_record(noise, rate, draws, epsilon):
    chances = binom.pmf(range(draws + 1), draws, rate)
    delta = stick(mixture(noise, chances), mixture(noise, chances, -1.0), epsilon)
    found = holds([(PoissonRelease(noise, rate, draws), 1)], "replace-one", delta, epsilon)
    assert found.upper - found.lower <= 0.01 * found.upper + 1e-3
    assert found.lower >= epsilon_interval(noise_multiplier=noise, sample_rate=rate, steps=1, delta=delta).lower


def test_no_two_directions_are_worse_than_opposite_ones():
    """Slepian's interpolation, in two dimensions: random contributions of norm at most 1, several draws."""
    generator = np.random.default_rng(0)
    line = np.linspace(-9, 9, 601)
    x, y = np.meshgrid(line, line)
    area = (line[1] - line[0]) ** 2

    def density(vectors, rate, noise):
        total = 0.0
        for chosen in range(2 ** len(vectors)):
            inside = [vectors[i] for i in range(len(vectors)) if chosen >> i & 1]
            weight = rate ** len(inside) * (1 - rate) ** (len(vectors) - len(inside))
            (a, b) = np.sum(inside, axis=0) if inside else (0.0, 0.0)
            total = total + weight * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * noise**2))
        return total / (2 * math.pi * noise**2)

    for trial in range(40):
        draws, noise, rate = 1 + trial % 3, generator.uniform(0.6, 1.5), generator.uniform(0.1, 1.0)
        lengths = generator.uniform(0, 1, (2, draws)) ** 0.3
        angles = generator.uniform(0, 2 * math.pi, (2, draws))
        there = np.stack([lengths * np.cos(angles), lengths * np.sin(angles)], axis=-1)
        opposite = [np.tile([1.0, 0.0], (draws, 1)), np.tile([-1.0, 0.0], (draws, 1))]
        for factor in (0.4, 1.0, 1.7, 6.0):
            some, worst = (
                float(np.clip(density(p, rate, noise) - factor * density(q, rate, noise), 0, None).sum() * area)
                for p, q in (there, opposite)
            )
            assert some <= worst + 1e-9


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize(("noise", "size"), [(1.0, 30), (3.0, 200), (2.0, 1000)])
def test_a_batch_of_fixed_size(noise, size, epsilon):
    rate = size / 1000
    delta = stick(mixture(noise, [1 - rate, rate], 2.0), norm.pdf(LINE, 0, noise), epsilon)
    found = holds([(FixedSizeRelease(noise, 1000, size), 1)], "replace-one", delta, epsilon)
    assert found.upper - found.lower <= 0.01 * found.upper + 1e-3


def test_batches_of_fixed_size_compose_above_both_pairs_that_data_have():
    history = [(FixedSizeRelease(2.0, 1000, 20), 300)]
    found = interval_of(history, 1e-5)
    attained = epsilon_interval(noise_multiplier=1.0, sample_rate=0.02, steps=300, delta=1e-5)
    assert found.lower <= attained.upper
    assert attained.lower < found.upper
    several = interval_of([(FixedSizeRelease(2.0, 1000, 20, draws=4), 75)], 1e-5)
    assert several.upper >= interval_of([(FixedSizeRelease(2.0, 1000, 20), 75)], 1e-5).upper
    rdp = create_accountant("rdp")
    rdp.replace(history)
    assert rdp.adjacency == "replace-one"
    assert found.upper < rdp.get_epsilon(1e-5) < 3 * found.upper


@pytest.mark.parametrize(("noise", "largest"), [(1.0, 160), (2.0, 110), (4.0, 95)])
def test_a_truncated_batch(noise, largest):
    history = [(TruncatedRelease(noise, 0.01, 10_000, largest), 500)]
    found = interval_of(history, 1e-5)
    plain = epsilon_interval(noise_multiplier=noise, sample_rate=0.01, steps=500, delta=1e-5)
    theirs = TheirAccountant(value_discretization_interval=1e-3)
    event = dp_accounting.TruncatedSubsampledGaussianDpEvent(10_000, 0.01, largest, noise)
    theirs.compose(dp_accounting.SelfComposedDpEvent(event, 500))
    # Theirs is that of removing a record; where a record takes another's place it is not tight.
    assert plain.lower <= found.upper <= theirs.get_epsilon(1e-5) * 1.01
    assert found.lower <= plain.upper
    rdp = create_accountant("rdp")
    rdp.replace(history)
    assert found.upper <= rdp.get_epsilon(1e-5) <= 3 * found.upper


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("noise", [0.8, 2.0])
@pytest.mark.parametrize("released", [(1, 1), (1,), (2,), (1, 1, 1), (1, 2)])
def test_an_epoch_of_balls_in_bins(noise, epsilon, released):
    """The likelihood ratio of an epoch, integrated over all sums but the last on a grid, over that in closed form."""
    bins = 3
    grid = np.linspace(-8, 8, 1601) * noise
    width = grid[1] - grid[0]
    ratio, weight = np.full(1, 1 - sum(released) / bins), np.ones(1)
    for draws in released[:-1]:
        r = draws / bins * np.exp((2 * grid - 1) / (2 * noise**2))
        ratio = (ratio[:, None] + r).ravel()
        weight = (weight[:, None] * norm.pdf(grid, 0, noise) * width).ravel()

    def last(level, shift):
        """``P(ratio of all > level)`` where the last sum is N(shift, σ²), for each value of the others."""
        with np.errstate(divide="ignore", invalid="ignore"):
            edge = noise**2 * np.log(np.clip((level - ratio) * bins / released[-1], 0, None)) + 0.5
        return norm.sf(edge, shift, noise)

    part = released[-1] / bins
    up, down = math.exp(epsilon), math.exp(-epsilon)
    remove = (weight * (ratio * last(up, 0) + part * last(up, 1) - up * last(up, 0))).sum()
    below = [1 - last(down, shift) for shift in (0, 1)]
    add = (weight * (below[0] - up * (ratio * below[0] + part * below[1]))).sum()
    found = holds(
        [(BallsInBinsRelease(noise, bins, 1, draws), 1) for draws in released],
        "add-or-remove-one",
        float(max(remove, add)),
        epsilon,
    )
    assert found.upper - found.lower <= 0.01 * found.upper + 1e-3


def test_many_bins_are_close_to_poisson_and_cost_less():
    epochs = [(BallsInBinsRelease(1.0, 200, epoch), 200) for epoch in range(10)]
    found = interval_of(epochs, 1e-5)
    poisson = epsilon_interval(noise_multiplier=1.0, sample_rate=1 / 200, steps=2000, delta=1e-5)
    assert 0.8 * poisson.upper < found.lower < found.upper < poisson.lower
    half = interval_of([*epochs[:9], (BallsInBinsRelease(1.0, 200, 9), 100)], 1e-5)
    assert interval_of(epochs[:9], 1e-5).upper < half.lower < half.upper < found.lower


def test_an_epoch_is_one_pair_at_its_least_noise_and_a_batch_counts_once():
    history = [
        (BallsInBinsRelease(2.0, 4, 1), 2),
        (BallsInBinsRelease(1.0, 4, 1, 2), 1),
        (BallsInBinsRelease(3.0, 1, 2), 1),
    ]
    composition = compose(history)
    assert composition.sampled == {EpochPair(1.0, 4, ((1, 2), (2, 1))): 1}
    assert composition.precision == pytest.approx(1 / 9)
    with pytest.raises(ConfigurationError, match="released twice"):
        compose([(BallsInBinsRelease(2.0, 4, 1), 5)])
    with pytest.raises(ConfigurationError, match="at most that"):
        BallsInBinsRelease(1.0, 4, 1, draws=5)


def test_groups_in_turn_cost_what_the_costliest_does():
    turns = [(CyclicRelease(1.0, 0.1, step % 10, 1 + step // 50), 1) for step in range(205)]
    expected = epsilon_interval(noise_multiplier=1.0, sample_rate=0.1, steps=21, delta=1e-5)
    assert interval_of(turns, 1e-5) == expected
    assert interval_of([(CyclicRelease(2.0, 1.0, group, 1), 1) for group in range(3)], 1e-5).method == "closed form"


def test_which_groups_of_two_passes_are_alike_is_not_assumed():
    """A record may be in the first group of one run and in the second of another: the costly one, both times."""
    costly = [(CyclicRelease(1.0, 0.1, 0, 1), 5), (CyclicRelease(4.0, 0.1, 1, 1), 5)]
    later = [(CyclicRelease(4.0, 0.1, 0, 2), 5), (CyclicRelease(1.0, 0.1, 1, 2), 5)]
    record = [(PoissonRelease(1.0, 0.1), 10)]
    assert interval_of([*costly, *later], 1e-5).upper >= interval_of(record, 1e-5).upper


def test_a_users_records_together():
    accountant = create_accountant("pld")
    accountant.record(PoissonRelease(2.0, 0.01), 10_000)
    assert tuple(accountant.get_interval(1e-5, group=4)) == pytest.approx((10.945, 10.954), rel=2e-3)
    assert accountant.get_interval(1e-5, group=1) == accountant.get_interval(1e-5)
    epochs = create_accountant("pld")
    epochs.record(EpochRelease(4.0, 1), 10)
    alone = epsilon_interval(noise_multiplier=2.0, sample_rate=1.0, steps=1, delta=1e-5)
    assert epochs.get_interval(1e-5, group=2) == alone
    fixed = create_accountant("pld")
    fixed.record(FixedSizeRelease(1.0, 100, 10))
    with pytest.raises(ConfigurationError, match="no bound for groups"):
        fixed.get_interval(1e-5, group=2)


def test_the_tradeoff_is_that_of_the_worst_record():
    truncated = trade_off([(TruncatedRelease(1.0, 0.1, 100, 12), 5)])
    assert len(truncated.curves) == 2
    plain = trade_off([(PoissonRelease(1.0, 0.1), 5)])
    assert truncated.true_positive_rate(1e-3) >= plain.true_positive_rate(1e-3) > 1e-3


def test_relations_without_a_proof_are_refused_and_those_with_one_are_named():
    with pytest.raises(ConfigurationError, match="fixed-size: replace-one"):
        interval_of([(FixedSizeRelease(1.0, 100, 10), 1)], 1e-5, "add-or-remove-one")
    accountant = create_accountant("pld", "replace-one")
    accountant.record(PoissonRelease(1.0, 0.1))
    with pytest.raises(ConfigurationError, match="balls-in-bins: add-or-remove-one, zero-out-one"):
        accountant.record(BallsInBinsRelease(1.0, 10, 1))
    assert accountant.steps == 1
    assert accountant.adjacency == "replace-one"
    mixed = create_accountant("pld")
    mixed.record(FixedSizeRelease(1.0, 100, 10))
    with pytest.raises(ConfigurationError, match="one adjacency for all"):
        mixed.record(TruncatedRelease(1.0, 0.1, 100, 20))
    with pytest.raises(ConfigurationError, match="choose one of"):
        create_accountant("pld", "swap-one")
