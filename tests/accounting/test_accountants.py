"""Accountants keep a history, answer from it, and survive checkpoints."""

import json
import math
import subprocess
import sys

import pytest

from tacit.accounting import (
    EpochRelease,
    PLDAccountant,
    PoissonRelease,
    RDPAccountant,
    create_accountant,
    epsilon,
)
from tacit.errors import CheckpointError, ConfigurationError

NAMES = ("pld", "rdp")


def test_names():
    assert isinstance(create_accountant("rdp"), RDPAccountant)
    assert isinstance(create_accountant("pld"), PLDAccountant)
    assert create_accountant("prv").mechanism() == "pld"
    with pytest.raises(ConfigurationError, match="'rdp', 'pld', 'prv'"):
        create_accountant("gdp")
    with pytest.raises(ConfigurationError):
        create_accountant(["pld"])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_released_costs_nothing(name):
    accountant = create_accountant(name)
    assert accountant.get_epsilon(1e-5) == 0.0
    assert (len(accountant), accountant.steps, accountant.history) == (0, 0, ())
    assert accountant.adjacency == "add-or-remove-one"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("release", [PoissonRelease(0.0, 0.1), EpochRelease(0.0, 1), PoissonRelease(0, 1)])
def test_a_release_without_noise_is_not_private(name, release):
    accountant = create_accountant(name)
    accountant.step(noise_multiplier=1.0, sample_rate=0.1)
    accountant.record(release)
    assert accountant.get_epsilon(1e-5) == math.inf


def test_history_is_run_length_encoded():
    accountant = create_accountant("pld")
    for noise in (1.0, 1.0, 2.0, 1.0):
        accountant.step(noise_multiplier=noise, sample_rate=0.1)
    one, two = PoissonRelease(1.0, 0.1), PoissonRelease(2.0, 0.1)
    assert accountant.history == ((one, 2), (two, 1), (one, 1))
    assert (len(accountant), accountant.steps) == (3, 4)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, "1e-5", True])
def test_bad_delta_is_refused(delta):
    with pytest.raises(ConfigurationError, match="delta"):
        create_accountant("pld").get_epsilon(delta)


def test_unknown_releases_are_refused():
    with pytest.raises(ConfigurationError, match="PoissonRelease"):
        create_accountant("pld").record((1.0, 0.1))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_epsilon_follows_the_history(name):
    accountant = create_accountant(name)
    plan = {"noise_multiplier": 1.3, "sample_rate": 0.02}
    for steps in (1, 2, 3):
        accountant.step(**plan)
        expected = epsilon(**plan, steps=steps, delta=1e-5, accountant=name)
        assert accountant.get_epsilon(1e-5) == accountant.get_epsilon(1e-5) == expected
    assert accountant.get_epsilon(1e-6) > accountant.get_epsilon(1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_epochs_cost_one_gaussian_each(name):
    accountant = create_accountant(name)
    for epoch in range(4):
        for _ in range(25):
            accountant.record(EpochRelease(6.0, epoch))
    gaussians = epsilon(noise_multiplier=6.0, sample_rate=1.0, steps=4, delta=1e-5, accountant=name)
    assert accountant.get_epsilon(1e-5) == pytest.approx(gaussians)
    assert accountant.adjacency == "zero-out-one"
    before = accountant.get_epsilon(1e-5)
    accountant.step(noise_multiplier=2.0, sample_rate=0.1)
    assert accountant.get_epsilon(1e-5) > before
    assert accountant.adjacency == "zero-out-one"


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_round_trip(name):
    saved, loaded = create_accountant(name), create_accountant(name)
    saved.record(PoissonRelease(0.1 + 0.9, 1 / 30), 17)
    saved.record(PoissonRelease(1.1, 0.03, 2))
    saved.record(EpochRelease(5.0, 3))
    loaded.step(noise_multiplier=0.0, sample_rate=0.5)
    assert loaded.get_epsilon(1e-5) == math.inf
    loaded.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    assert (loaded.history, loaded.steps) == (saved.history, saved.steps)
    assert loaded.get_epsilon(1e-5) == saved.get_epsilon(1e-5)


GOOD = {"format": "tacit.accountant", "version": 1, "accountant": "pld"}
RUN = [{"kind": "epoch", "noise_multiplier": 1.0, "epoch": 0}, 3]


@pytest.mark.parametrize(
    "state",
    [
        {},
        [],
        GOOD,
        {**GOOD, "version": 2, "history": []},
        {**GOOD, "accountant": "rdp", "history": []},
        {**GOOD, "format": "other", "history": []},
        {**GOOD, "history": None},
        {**GOOD, "history": [RUN, [RUN[0], 0]]},
        {**GOOD, "history": [[RUN[0]]]},
        {**GOOD, "history": [[7, 1]]},
        {**GOOD, "history": [[{**RUN[0], "noise_multiplier": -1.0}, 1]]},
    ],
)
def test_foreign_states_change_nothing(state):
    accountant = create_accountant("pld")
    accountant.step(noise_multiplier=1.0, sample_rate=0.1)
    before = accountant.history
    with pytest.raises(CheckpointError):
        accountant.load_state_dict(state)
    assert (accountant.history, accountant.steps) == (before, 1)


def test_importing_is_cheap():
    code = (
        "import sys, tacit.accounting as a\n"
        "a.create_accountant('pld').step(noise_multiplier=1, sample_rate=0.1)\n"
        "assert not {'torch', 'scipy', 'dp_accounting'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
