"""The statement says what ran."""

import json

import torch
from tests.small_run import make, train

from tacit.accounting import epsilon
from tacit.numbers import downward, upward


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
    assert f"epsilon <= {upward(bound, 4)} (and at least {downward(facts['epsilon_lower'], 4)})" in found.text
    assert "one patient of 24" in found.text
    assert "add-or-remove-one: two data sets are neighbours" in found.text
    assert "clipped to 1.5, Gaussian noise of deviation 3 (multiplier 2)" in found.text
    assert "AES" in found.text
    assert "on record in mail.ledger" in found.text
    assert found.markdown.startswith("## Privacy statement\n\n- **Guarantee**: (epsilon, delta)")


def test_warnings():
    found = run(noise_multiplier=0.0, noise_generator=torch.Generator()).statement(0.5).facts
    assert found["epsilon_upper"] is None
    assert len(found["warnings"]) == 3
    assert run(steps=0).statement(1e-6).facts["warnings"] == ["Nothing was released yet."]
    assert run(poisson_sampling=False).statement(1e-6).facts["adjacency"] == "zero-out-one"
