"""Releases validate themselves, survive JSON, and state their adjacency."""

import json
import math

import pytest

from tacit.accounting import EpochRelease, PoissonRelease
from tacit.accounting.events import adjacency_of, release_from_dict, release_to_dict
from tacit.errors import ConfigurationError

BAD_NOISE = (-1.0, math.nan, math.inf, "1", None, True)


@pytest.mark.parametrize("noise", BAD_NOISE)
def test_bad_noise_is_refused(noise):
    with pytest.raises(ConfigurationError, match="noise_multiplier"):
        PoissonRelease(noise, 0.1)
    with pytest.raises(ConfigurationError, match="noise_multiplier"):
        EpochRelease(noise, 0)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan, True, "0.1"])
def test_bad_rate_is_refused(rate):
    with pytest.raises(ConfigurationError, match="sample_rate"):
        PoissonRelease(1.0, rate)


@pytest.mark.parametrize("draws", [0, -1, 1.5, True])
def test_bad_draws_are_refused(draws):
    with pytest.raises(ConfigurationError, match="draws"):
        PoissonRelease(1.0, 0.1, draws)


@pytest.mark.parametrize("epoch", [-1, 0.5, False])
def test_bad_epoch_is_refused(epoch):
    with pytest.raises(ConfigurationError, match="epoch"):
        EpochRelease(1.0, epoch)


@pytest.mark.parametrize("release", [PoissonRelease(0.1 + 0.2, 1 / 3, 4), EpochRelease(1.1, 7)])
def test_json_round_trip(release):
    assert release_from_dict(json.loads(json.dumps(release_to_dict(release)))) == release


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "laplace", "noise_multiplier": 1.0},
        {"kind": "epoch", "noise_multiplier": 1.0},
        {"kind": "epoch", "noise_multiplier": 1.0, "epoch": 0, "extra": 1},
        {"kind": ["epoch"], "noise_multiplier": 1.0, "epoch": 0},
        {"kind": "poisson", "noise_multiplier": 1.0, "sample_rate": 2.0, "draws": 1},
    ],
)
def test_unreadable_dicts_are_refused(data):
    with pytest.raises(ConfigurationError):
        release_from_dict(data)


def test_adjacency_of_a_mixed_history_is_the_one_that_holds_for_both():
    poisson, epoch = (PoissonRelease(1.0, 0.1), 1), (EpochRelease(1.0, 0), 1)
    assert adjacency_of([poisson]) == "add-or-remove-one"
    assert adjacency_of([epoch]) == "zero-out-one"
    assert adjacency_of([poisson, epoch]) == "zero-out-one"
