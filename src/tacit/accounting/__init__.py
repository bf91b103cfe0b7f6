"""Privacy accounting: from what was released to a bound on epsilon, and back to the noise."""

from tacit.accounting.accountants import Accountant, PLDAccountant, RDPAccountant, create_accountant
from tacit.accounting.calibration import calibrate, epsilon, noise_multiplier
from tacit.accounting.events import EpochRelease, PoissonRelease, Release
from tacit.accounting.intervals import Interval, delta_interval, epsilon_interval
from tacit.accounting.tradeoff import TradeOff, gaussian_mu, trade_off

__all__ = [
    "Accountant",
    "EpochRelease",
    "Interval",
    "PLDAccountant",
    "PoissonRelease",
    "RDPAccountant",
    "Release",
    "TradeOff",
    "calibrate",
    "create_accountant",
    "delta_interval",
    "epsilon",
    "epsilon_interval",
    "gaussian_mu",
    "noise_multiplier",
    "trade_off",
]
