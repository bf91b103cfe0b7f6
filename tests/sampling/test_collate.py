import pickle
from collections import namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import default_collate

from tacit.errors import SamplingError
from tacit.sampling import EmptyAwareCollate

Pair = namedtuple("Pair", ["x", "name"])


@dataclass
class Batch:
    x: torch.Tensor
    names: list[str]


class Records:
    """Hands out one record, anew each time."""

    def __init__(self, record: Any) -> None:
        self.record = record

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return self.record() if callable(self.record) else self.record


class ManyRecords:
    def __len__(self) -> int:
        return 3

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [(torch.ones(2), index) for index in indices]


def empty(record: Any, collate: Any = default_collate) -> Any:
    return EmptyAwareCollate(Records(record), collate)([])


def test_tensors():
    x, y = empty((torch.ones(3, 4), 1))
    assert x.shape == (0, 3, 4)
    assert y.shape == (0,)
    assert y.dtype == torch.int64


def test_bare_tensor():
    assert empty(torch.ones(2)).shape == (0, 2)


def test_nested_structure_and_strings():
    batch = empty({"x": torch.ones(2), "meta": ("a", [torch.ones(1), "b"]), "z": 1.0})
    assert batch["x"].shape == (0, 2)
    assert batch["meta"][0] == ()
    assert batch["meta"][1][0].shape == (0, 1)
    assert batch["meta"][1][1] == ()
    assert batch["z"].shape == (0,)
    assert batch["z"].dtype == torch.float64


def test_namedtuple():
    batch = empty(Pair(torch.ones(2), "a"))
    assert type(batch) is Pair
    assert batch.x.shape == (0, 2)
    assert list(batch.name) == []


def test_dataclass_and_list_of_strings():
    def collate(records: list[Any]) -> Batch:
        return Batch(torch.stack([x for x, _ in records]), [name for _, name in records])

    batch = empty((torch.ones(2), "a"), collate)
    assert type(batch) is Batch
    assert batch.x.shape == (0, 2)
    assert batch.names == []


def test_one_element_per_record_of_any_type():
    images, targets = empty((torch.ones(2), {"box": torch.ones(4)}), lambda records: tuple(zip(*records, strict=True)))
    assert images == ()
    assert targets == ()


def test_none_and_other_mappings_are_kept():
    batch = empty(1, lambda records: MappingProxyType({"x": torch.tensor(records), "mask": None}))
    assert type(batch) is MappingProxyType
    assert batch["x"].shape == (0,)
    assert batch["mask"] is None


def test_collate_that_consumes_its_records():
    def collate(records: list[dict[str, Any]]) -> Any:
        return torch.stack([record.pop("x") for record in records])

    made = []

    def record() -> dict[str, Any]:
        made.append({"x": torch.ones(2)})
        return made[-1]

    assert empty(record, collate).shape == (0, 2)


def test_structure_is_made_once_and_never_shared():
    calls = []

    def collate(records: list[Any]) -> Any:
        calls.append(len(records))
        return default_collate(records)

    wrapped = EmptyAwareCollate(Records({"x": torch.ones(2)}), collate)
    first, second = wrapped([]), wrapped([])
    assert calls == [1, 2]
    first["extra"] = 1
    assert "extra" not in second


def test_no_record_is_kept():
    x = empty(torch.ones(1000))
    assert x.untyped_storage().nbytes() == 0


def test_dataset_with_getitems():
    x, y = EmptyAwareCollate(ManyRecords(), default_collate)([])
    assert x.shape == (0, 2)
    assert y.shape == (0,)


def test_other_batches_pass_unchanged():
    seen = []
    wrapped = EmptyAwareCollate(Records(1), seen.append)
    records = [1, 2]
    wrapped(records)
    assert seen[0] is records


def test_pickles():
    wrapped = pickle.loads(pickle.dumps(EmptyAwareCollate(Records((torch.ones(2), 1)), default_collate)))
    assert wrapped([])[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (lambda _: {"x": torch.ones(1), "n": 3}, r"batch\['n'\] as collate_fn returns it is int"),
        (lambda _: (torch.ones(1), "train", 0), r"batch\[1\] as collate_fn returns it is str"),
        (lambda _: torch.tensor(1.0), "a tensor without dimensions"),
        (lambda records: pack_sequence([torch.ones(2)] * len(records)), "PackedSequence"),
        (lambda records: [torch.ones(1)] * (3 if len(records) == 1 else 5), "is list"),
        (lambda records: {str(i): torch.ones(1) for i in range(len(records))}, "is dict"),
        (lambda records: None if len(records) == 1 else 1, "is NoneType"),
    ],
)
def test_unknown_parts_are_refused(collate, message):
    with pytest.raises(SamplingError, match=message) as caught:
        empty(1, collate)
    assert "first dimension is the batch" in str(caught.value)
