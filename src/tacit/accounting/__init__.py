"""Privacy accounting: from what was released to a bound on epsilon, and back to the noise."""

from tacit.accounting.accountants import Accountant, PLDAccountant, RDPAccountant, create_accountant
from tacit.accounting.calibration import calibrate, epsilon, noise_multiplier
from tacit.accounting.intervals import Interval, delta_interval, epsilon_interval
from tacit.accounting.releases import (
    Adjacency,
    BallsInBinsRelease,
    CyclicRelease,
    EpochRelease,
    FixedSizeRelease,
    PoissonRelease,
    Release,
    TruncatedRelease,
)
from tacit.accounting.search import combined, number_of_runs, search_epsilon
from tacit.accounting.tradeoff import TradeOff, gaussian_mu, trade_off

__all__ = [
    "Accountant",
    "Adjacency",
    "BallsInBinsRelease",
    "CyclicRelease",
    "EpochRelease",
    "FixedSizeRelease",
    "Interval",
    "PLDAccountant",
    "PoissonRelease",
    "RDPAccountant",
    "Release",
    "TradeOff",
    "TruncatedRelease",
    "calibrate",
    "combined",
    "create_accountant",
    "delta_interval",
    "epsilon",
    "epsilon_interval",
    "gaussian_mu",
    "noise_multiplier",
    "number_of_runs",
    "search_epsilon",
    "trade_off",
]
