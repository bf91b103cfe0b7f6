"""Epsilon, ledger and budget of several processes are those of one run."""

import pytest
from processes import results
from scenarios import Case, accounts, calibrated, several

from tacit.accounting import epsilon


def test_epsilon_is_that_of_one_process_at_the_same_rate():
    """30 records in batches of 2 × 4, or 8: four batches an epoch."""
    runs = [results(world, several, [Case(batch=8 // world, noise=1.1)]) for world in (1, 2)]
    stated = epsilon(noise_multiplier=1.1, sample_rate=1 / 4, steps=4, delta=1e-5)
    assert {one[0][2] for found in runs for one in found} == {stated}


def test_a_ledger_is_kept_by_one_and_known_to_all(tmp_path):
    path = tmp_path / "ledger"
    first, second = results(2, accounts, str(path))
    assert first == second
    assert first["releases"] == 3  # one of them another run's
    assert [count for _, count in first["history"]] == [1, 1, 1]
    assert first["remaining"] >= 1
    assert "above the budget" in first["budget"]
    assert "not be on record" in first["ledger"]
    assert first["unmoved"]
    assert first["end"] == 3 + first["remaining"]


def test_noise_is_calibrated_once():
    first, second = results(2, calibrated)
    assert first == second
    assert 2.9 < first[1] <= 3.0 or first[1] == pytest.approx(3.0, rel=1e-2)
