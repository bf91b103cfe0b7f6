"""The statement says what ran."""

import json

import pytest
import torch
from tests.small_run import make, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.accounting import epsilon
from tacit.errors import ConfigurationError
from tacit.numbers import downward, upward
from tacit.sampling import UserPoissonSampling
from tacit.statement import Statement


def run(steps=3, **changes):
    engine, *parts = make(**{"noise_multiplier": 2.0, "max_grad_norm": 1.5} | changes)
    train(*parts, steps=steps)
    return engine


def test_numbers_and_words(tmp_path):
    engine = run(ledger=tmp_path / "mail.ledger")
    found = engine.statement(1e-3, unit="patient")
    bound = epsilon(noise_multiplier=2.0, sample_rate=1 / 3, steps=3, delta=1e-3)
    facts = json.loads(found.to_json())
    assert facts["epsilon_lower"] <= facts["epsilon_upper"] == bound
    assert 1e-3 < facts["true_positive_rate"]["0.001"] < 0.05
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["warnings"] == []
    assert f"ε ≤ {upward(bound, 4)} (and at least {downward(facts['epsilon_lower'], 4)})" in found.text
    assert "One patient of 24" in found.text
    assert "add-or-remove-one: two data sets are neighbours" in found.text
    assert (
        "gradient of each patient, over all weights, is clipped to an l2 norm of 1.5; Gaussian noise of deviation 3"
        in found.text
    )
    assert "AES" in found.text
    assert "on record in mail.ledger" in found.text
    assert found.markdown.startswith("## Privacy statement\n\n- **Guarantee**: (ε, δ)")


def test_warnings():
    found = run(noise_multiplier=0.0, noise_generator=torch.Generator()).statement(0.5).facts
    assert found["epsilon_upper"] is None
    assert len(found["warnings"]) == 3
    assert run(steps=0).statement(1e-6).facts["warnings"] == ["Nothing was released yet."]
    assert run(poisson_sampling=False).statement(1e-6).facts["adjacency"] == "zero-out-one"


def test_users_are_the_unit_where_they_are_sampled():
    sampling = UserPoissonSampling(torch.arange(24) // 3, 1 / 3, 3, most=2)
    text = run(sampling=sampling, loss_reduction="sum").statement(1e-3).text
    assert "One user of 8" in text
    assert "one user added or removed" in text


def test_what_is_not_covered_is_said():
    found = run().statement(1e-3, not_covered=["The learning rate."])
    assert "\nNot covered: The choice of hyper-parameters" in found.text
    assert found.text.endswith("\nNot covered: The learning rate.")
    assert found.facts["not_covered"][-1] == "The learning rate."


def test_json_there_and_back():
    found = run().statement(1e-3)
    assert Statement.from_json(found.to_json()).text == found.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}', "null", '{"format": "tacit.statement"}'])
def test_other_files_are_no_statements(text):
    with pytest.raises(ConfigurationError, match="no privacy statement"):
        Statement.from_json(text)


def test_changed_settings_are_said():
    engine, *parts = make()
    train(*parts, steps=1)
    assert engine.statement(1e-3).facts["warnings"] == []
    engine.noise_multiplier = 5.0
    train(*parts, steps=1)
    assert "are the latest ones" in engine.statement(1e-3).facts["warnings"][0]


def test_the_accountant_stays():
    engine, *_ = make()
    with pytest.raises(AttributeError):
        engine.accountant = None


@pytest.mark.parametrize("poisson", [False, True])
def test_draws_from_a_given_generator_are_said_to_be_known(poisson):
    """Amplification counts on a secret draw, and on draws that do not come again in other runs."""
    for generator in (None, torch.Generator().manual_seed(0)):
        model, engine = nn.Linear(2, 1), PrivacyEngine()
        engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=2, shuffle=True, generator=generator),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=poisson,
        )
        assert ("by a generator that was given" in engine.statement(1e-3).text) is (poisson and generator is not None)
