from itertools import pairwise

import pytest
import torch
from tests.sampling.tables import evenly, independent, joined, likely
from torch.utils.data import DataLoader, TensorDataset

from tacit.accounting import PoissonRelease
from tacit.errors import ConfigurationError, SamplingError
from tacit.sampling import Draw, UserPoissonSampling

RATE, STEPS = 0.2, 1000
USERS = torch.randint(1000, 1300, (900,), generator=torch.Generator().manual_seed(0))
SAMPLING = UserPoissonSampling(USERS, RATE, STEPS, most=2)


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return joined(SAMPLING)


@pytest.fixture(scope="module")
def by_user(table) -> torch.Tensor:
    """(STEPS, users): how many records of each are in each batch."""
    owner = torch.tensor(SAMPLING.owners(range(900)))
    return torch.zeros(STEPS, SAMPLING.units).index_add_(1, owner, table.float())


def test_a_user_joins_with_all_records_or_as_many_as_allowed(by_user):
    sizes = USERS.unique(return_counts=True)[1].clamp(max=2)
    assert bool(((by_user == 0) | (by_user == sizes)).all())


def test_users_join_independently(by_user):
    joins = by_user > 0
    users = joins.shape[1] // 2 * 2
    assert likely(joins, RATE)
    assert evenly(joins.sum(0), STEPS * RATE * (1 - RATE), freedom=joins.shape[1] - 1)
    assert independent(joins[:, 0:users:2], joins[:, 1:users:2], RATE)
    assert independent(joins[0::2], joins[1::2], RATE)


def test_each_record_of_a_user_is_as_likely(table):
    users, sizes = USERS.unique(return_counts=True)
    user, size = users[sizes == 4][0], 4
    records = (user == USERS).nonzero().flatten()
    for record in records:
        assert likely(table[:, record], RATE * 2 / size)


def test_records_of_a_user_stand_behind_each_other():
    for batch in UserPoissonSampling(USERS, RATE, 20, most=5).batches(torch.Generator().manual_seed(1)):
        owners = UserPoissonSampling(USERS, RATE, 20, most=5).owners(batch)
        changes = sum(one != other for one, other in pairwise(owners))
        assert changes == max(len(set(owners)) - 1, 0)


def test_from_loader():
    loader = DataLoader(TensorDataset(torch.zeros(6)), batch_size=2)
    found = UserPoissonSampling.from_loader(loader, users=[7, 7, 7, 5, 9, 9], most=2)
    assert (found.records, found.units, found.sample_rate, found.steps_per_epoch) == (6, 3, 1 / 3, 3)
    assert found.expected_batch_size == 1.0
    assert found.amplified
    assert found.unit == "user"
    assert "each of 3 users" in found.description
    for users in ([1, 2], [[1], [2], [3], [4], [5], [6]]):
        with pytest.raises(ConfigurationError, match="one for each record"):
            UserPoissonSampling.from_loader(loader, users=users, most=2)


def test_event():
    assert SAMPLING.event(1.0, [Draw(0, 1, 50)]) == PoissonRelease(1.0, RATE)
    with pytest.raises(SamplingError, match="names no draw"):
        SAMPLING.event(1.0, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), 0.5, 1, 1), "vector of integers"),
        ((torch.zeros(3, 1, dtype=torch.int64), 0.5, 1, 1), "vector of integers"),
        (([1, 2], 0.5, 1, 1), "vector of integers"),
        ((USERS, 0.0, 1, 1), "sample_rate"),
        ((USERS, 0.5, 0, 1), "steps_per_epoch"),
        ((USERS, 0.5, 1, 0), "most"),
        ((USERS[:0], 0.5, 1, 1), "records"),
    ],
)
def test_values_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        UserPoissonSampling(*arguments)
