"""The step that would pass the budget releases nothing."""

import pytest
import torch
from tests.small_run import epoch, make, train

from tacit import PrivacyEngine
from tacit.accounting import BallsInBinsRelease, PoissonRelease, create_accountant, epsilon
from tacit.budget import Budget
from tacit.errors import BudgetError, ConfigurationError

DELTA = 1e-5


def test_the_last_step_that_fits_is_the_last(tmp_path):
    engine, model, *parts = make(noise_multiplier=2.0, ledger=tmp_path / "a.ledger")
    limit = epsilon(noise_multiplier=2.0, sample_rate=1 / 3, steps=5, delta=DELTA)
    engine.budget(limit, DELTA)
    assert engine.remaining_steps == 5
    train(model, *parts, steps=2)
    assert engine.remaining_steps == 3
    train(model, *parts, steps=3)
    weights = model.weight.detach().clone()
    with pytest.raises(BudgetError, match=r"above the budget of .* after 5 releases\. Nothing was released"):
        train(model, *parts, steps=1)
    assert torch.equal(model.weight, weights)
    assert engine.accountant.steps == engine._attached.ledger.releases == 5
    assert engine.get_epsilon(DELTA) <= limit
    assert engine.remaining_steps == 0


def test_less_noise_is_counted_anew():
    engine, model, *parts = make(noise_multiplier=2.0)
    engine.budget(epsilon(noise_multiplier=2.0, sample_rate=1 / 3, steps=5, delta=DELTA), DELTA)
    train(model, *parts, steps=1)
    engine.noise_multiplier = 0.7
    assert engine.remaining_steps < 4
    with pytest.raises(BudgetError):
        train(model, *parts, steps=4)


def test_what_another_run_spends_counts(tmp_path):
    engine, model, *parts = make(noise_multiplier=2.0, ledger=tmp_path / "a.ledger")
    engine.budget(epsilon(noise_multiplier=2.0, sample_rate=1 / 3, steps=5, delta=DELTA), DELTA)
    train(model, *parts, steps=1)
    _, other, *others = make(noise_multiplier=2.0, ledger=tmp_path / "a.ledger")
    train(other, *others, steps=3)
    assert engine.remaining_steps == 1
    train(model, *parts, steps=1)
    with pytest.raises(BudgetError, match="after 5 releases"):
        train(model, *parts, steps=1)


def test_own_batches_cost_by_the_epoch():
    engine, *parts = make(noise_multiplier=2.0, poisson_sampling=False)
    engine.budget(epsilon(noise_multiplier=2.0, sample_rate=1.0, steps=2, delta=DELTA), DELTA)
    assert engine.remaining_steps == 6
    epoch(*parts)
    assert engine.remaining_steps == 3
    epoch(*parts)
    assert engine.remaining_steps == 0
    with pytest.raises(BudgetError, match="after 6 releases"):
        epoch(*parts)


def test_an_epoch_that_was_left_early_is_not_gone_on_with():
    engine, model, *parts = make(noise_multiplier=2.0, sampling="balls-in-bins")
    history = [(BallsInBinsRelease(2.0, 3, 1), 1), (BallsInBinsRelease(2.0, 3, 2), 3)]
    spent = create_accountant("pld")
    spent.replace(history)
    engine.budget(spent.get_epsilon(DELTA) * (1 + 1e-9), DELTA)
    train(model, *parts, steps=1)
    epoch(model, *parts)
    assert list(engine.accountant.history) == history
    with pytest.raises(BudgetError, match="after 4 releases"):
        epoch(model, *parts)


def test_the_search_ends_at_the_last_count_that_fits():
    release = PoissonRelease(1.0, 0.01)
    accountant = create_accountant("rdp")
    budget = Budget(2.0, DELTA)
    count = budget.remaining(accountant, lambda releases: [(release, releases)])
    for steps, fits in ((count, True), (count + 1, False)):
        other = create_accountant("rdp")
        other.record(release, steps)
        assert (other.get_epsilon(DELTA) <= 2.0) is fits


def test_wrong_budgets():
    with pytest.raises(ConfigurationError, match="no private model"):
        PrivacyEngine().budget(1.0, DELTA)
    engine, *_ = make(noise_multiplier=2.0)
    with pytest.raises(ConfigurationError, match="no budget was set"):
        _ = engine.remaining_steps
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="epsilon"):
            engine.budget(wrong, DELTA)
    with pytest.raises(ConfigurationError, match="delta"):
        engine.budget(1.0, 1.0)
