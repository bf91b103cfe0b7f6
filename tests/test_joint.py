"""What processes compare tells apart what must not differ."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from tacit.accounting import create_accountant
from tacit.distributed import Group
from tacit.joint import Checksums, data_facts, gradient_facts, run_facts, shared_key

DATA = TensorDataset(torch.arange(200_000.0).reshape(50_000, 4), torch.arange(50_000))


class Lines(Dataset):
    """A data set of another kind."""


def test_data_sets_are_told_apart_by_their_tensors_and_indices():
    assert data_facts(DATA) == data_facts(TensorDataset(*DATA.tensors))
    other = DATA.tensors[0].clone()
    other[1:, 2] += 1
    assert data_facts(DATA) != data_facts(TensorDataset(other, DATA.tensors[1]))
    halves = [Subset(DATA, range(rank, 10, 2)) for rank in range(2)]
    assert data_facts(halves[0]) != data_facts(halves[1])
    assert data_facts(Subset(DATA, [0, 2, 4, 6, 8])) == data_facts(halves[0])
    assert data_facts(Subset(Lines(), [1])) != data_facts(Subset(Lines(), [2]))
    assert data_facts(TensorDataset(torch.zeros(0, 3))) == data_facts(TensorDataset(torch.zeros(0, 3)))


def test_parameters_are_told_apart_by_name_shape_type_and_whether_they_are_trained():
    accountant = create_accountant("pld")
    models = [nn.Linear(3, 2), nn.Linear(2, 3), nn.Linear(3, 2).double(), nn.Linear(3, 2).requires_grad_(False)]
    facts = [repr(run_facts(accountant, dict(model.named_parameters()))) for model in models]
    assert len(set(facts)) == 4


def test_checksums_see_the_last_bit_and_come_round_to_every_parameter():
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    mine, theirs = (Checksums(dict(model.named_parameters())) for model in (one, other))
    assert mine.facts() == theirs.facts()
    with torch.no_grad():
        other.bias[1] = torch.nextafter(other.bias[1], torch.tensor(9.0))
    assert sum(mine.facts() != theirs.facts() for _ in range(2)) == 1


@pytest.mark.parametrize("place", [0, 1, 19, 32767])
def test_gradients_that_differ_in_one_number_are_told_apart(place):
    """Of large ones a part is looked at, but not where all that is looked at is 0: in a table with few rows used."""
    tables = [nn.Embedding(512, 64) for _ in range(2)]
    for table in tables:
        table.weight.grad = torch.zeros_like(table.weight)
    facts = [gradient_facts(dict(table.named_parameters())) for table in tables]
    assert facts[0] == facts[1]
    tables[0].weight.grad.view(-1)[place] = 1.0
    assert gradient_facts(dict(tables[0].named_parameters())) != facts[1]


def test_one_process_needs_no_key():
    assert shared_key(Group(alone=True), None) is None
    assert shared_key(Group(), torch.Generator()) is None
