"""The RDP bound errs upward, quietly."""

import logging

import pytest

from tacit.accounting import epsilon


@pytest.mark.parametrize("rate", [1e-3, 0.05, 0.6])
@pytest.mark.parametrize("noise", [0.4, 1.0, 6.0])
def test_rdp_is_above_pld(noise, rate):
    plan = {"noise_multiplier": noise, "sample_rate": rate, "steps": 200, "delta": 1e-5}
    assert epsilon(**plan, accountant="rdp") >= epsilon(**plan)


def test_nearly_private_releases_still_cost():
    # dp_accounting rounds these divergences to zero or below and calls the result free.
    plan = {"noise_multiplier": 1e6, "sample_rate": 1e-9, "delta": 1e-12, "accountant": "rdp"}
    assert epsilon(**plan, steps=10**9) > epsilon(**plan, steps=10**6) > 0.0


def test_left_out_orders_are_not_reported(caplog):
    with caplog.at_level(logging.WARNING):
        epsilon(noise_multiplier=1.23, sample_rate=0.5, steps=1, delta=1e-5, accountant="rdp")
    assert not caplog.records
