"""A history is reduced to the right mechanisms."""

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant as ReferencePLD
from dp_accounting.rdp import RdpAccountant as ReferenceRDP

from tacit.accounting import EpochRelease, PLDAccountant, PoissonRelease, RDPAccountant
from tacit.accounting.composition import compose, dp_event, draws_bound
from tacit.accounting.rdp import ORDERS


def epsilon(accountant, history, delta=1e-5):
    for release, count in history:
        accountant.record(release, count)
    return accountant.get_epsilon(delta)


def test_an_epoch_is_one_gaussian_at_its_smallest_noise():
    history = [(EpochRelease(2.0, 0), 10), (EpochRelease(1.0, 0), 5), (EpochRelease(4.0, 1), 3)]
    assert compose(history).precision == pytest.approx(1.0 + 1 / 16)


def test_rate_one_is_a_gaussian_with_all_draws():
    assert compose([(PoissonRelease(2.0, 1.0, 3), 4)]).precision == pytest.approx(4 * (3 / 2) ** 2)


def test_noiseless_history_is_a_non_private_event():
    assert compose([(PoissonRelease(0.0, 0.1), 1)]).noiseless
    assert compose([(PoissonRelease(1e-200, 0.1), 1)]).noiseless
    assert isinstance(dp_event([(EpochRelease(0.0, 0), 1)]), dp_accounting.NonPrivateDpEvent)


MIXED = [(PoissonRelease(1.2, 0.02), 100), (EpochRelease(8.0, 0), 9), (PoissonRelease(0.9, 0.01, 2), 30)]


def test_pld_equals_dp_accounting_on_a_mixed_history():
    reference = ReferencePLD(value_discretization_interval=2e-3).compose(dp_event(MIXED)).get_epsilon(1e-5)
    assert epsilon(PLDAccountant(), MIXED) == pytest.approx(reference, rel=1e-3)


def test_rdp_equals_dp_accounting_on_a_mixed_history():
    reference = ReferenceRDP(list(ORDERS)).compose(dp_event(MIXED, exact_draws=False)).get_epsilon(1e-5)
    assert epsilon(RDPAccountant(), MIXED) == pytest.approx(reference, rel=1e-6)


def test_heterogeneous_steps_equal_manual_composition():
    def sampled(rate, noise):
        return dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))

    reference = ReferencePLD().compose(sampled(0.05, 1.5), 40).compose(sampled(0.02, 0.8), 60)
    history = [(PoissonRelease(1.5, 0.05), 40), (PoissonRelease(0.8, 0.02), 60)]
    assert epsilon(PLDAccountant(), history) == pytest.approx(reference.get_epsilon(1e-5), rel=1e-3)


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.02), (3.0, 0.2)])
def test_two_draws_lie_between_one_draw_and_the_composition_bound(noise, rate):
    double = PoissonRelease(noise, rate, 2)
    single, times = draws_bound(double)
    exact = epsilon(PLDAccountant(), [(double, 50)])
    assert epsilon(PLDAccountant(), [(PoissonRelease(noise, rate), 50)]) < exact
    assert exact < epsilon(PLDAccountant(), [(single, 50 * times)])
    assert exact < epsilon(RDPAccountant(), [(double, 50)])
