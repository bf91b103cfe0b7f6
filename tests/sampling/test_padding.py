from collections import namedtuple
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from tacit.errors import SamplingError
from tacit.sampling.padding import pad

Named = namedtuple("Named", "x y")
X, IDS = torch.ones(2, 3), torch.tensor([4, 5])
LONG, MORE = torch.tensor([[1.0] * 3, [1.0] * 3, [0.0] * 3]), torch.tensor([4, 5, 0])


@dataclass
class Record:
    x: torch.Tensor
    note: None = None


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    return one == other


@pytest.mark.parametrize("kind", [list, tuple])
def test_sequences(kind):
    found = pad(kind([X, IDS]), 2, 3, "batch")
    assert type(found) is kind
    assert all(same(a, b) for a, b in zip(found, (LONG, MORE), strict=True))


def test_other_containers():
    assert same(pad(X, 2, 3, "batch"), LONG)
    assert same(pad({"x": X}, 2, 3, "batch")["x"], LONG)
    frozen = pad(MappingProxyType({"x": X}), 2, 3, "batch")
    assert isinstance(frozen, MappingProxyType)
    assert same(frozen["x"], LONG)
    named = pad(Named(X, IDS), 2, 3, "batch")
    assert type(named) is Named
    assert same(named.y, MORE)
    record = pad(Record(X), 2, 3, "batch")
    assert same(record.x, LONG)
    assert record.note is None


def test_no_records_and_no_padding():
    assert same(pad(X[:0], 0, 2, "batch"), torch.zeros(2, 3))
    assert same(pad(X, 2, 2, "batch"), X)


@pytest.mark.parametrize(
    ("batch", "where"),
    [
        ([X, torch.ones(5)], r"batch\[1\]"),
        ({"n": torch.tensor(2)}, r"batch\['n'\]"),
        ((X, ["a", "b"]), r"batch\[1\]\[0\]"),
        (Record(torch.ones(3)), r"batch\.x"),
        ([pack_sequence([torch.ones(2), torch.ones(1)])], r"batch\[0\]"),
    ],
)
def test_what_has_no_blank_row_is_refused_by_name(batch, where):
    with pytest.raises(SamplingError, match=f"padded to one size, but {where} as collate_fn"):
        pad(batch, 2, 3, "batch")
