"""The statement says what ran."""

import json

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.accounting import epsilon

RECORDS = 24


def run(tmp_path=None, steps=3, **changes):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    engine = PrivacyEngine()
    settings = {"noise_multiplier": 2.0, "max_grad_norm": 1.5} | changes
    private, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(torch.randn(RECORDS, 3), torch.randint(0, 2, (RECORDS,))), batch_size=8),
        **settings,
    )
    for _ in range(steps):
        x, y = next(iter(loader))
        optimizer.zero_grad()
        nn.functional.cross_entropy(private(x), y).backward()
        optimizer.step()
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
    assert f"epsilon <= {bound:.4f}" in found.text
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
