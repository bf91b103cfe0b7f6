"""Batches without records, in the structure that the loader's collate_fn gives."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn.utils.rnn import PackedSequence

from tacit.errors import SamplingError
from tacit.sampling.padding import IsNamedTuple, pad


@runtime_checkable
class _FetchesMany(Protocol):
    """A dataset with PyTorch's optional ``__getitems__``, which its fetcher prefers."""

    def __getitems__(self, indices: list[int]) -> list[Any]: ...


class EmptyAwareCollate:
    """A ``collate_fn`` that also collates no records at all, and pads.

    Poisson sampling draws empty batches, which must be trained on as noise. For an empty list of
    records the first record of the dataset is collated once alone and once twice, which shows where
    the batch dimension is, and every record is cut off again. Nothing but shapes and types is kept.
    All other batches go to ``collate`` unchanged. A class, so that workers can unpickle it.
    """

    def __init__(self, dataset: Any, collate: Callable[[Any], Any], padded_size: int | None = None) -> None:
        self.dataset = dataset
        self.collate = collate
        self.padded_size = padded_size
        self._empty: list[Any] = []

    def __call__(self, records: Any) -> Any:
        """Collate ``records``, and pad them with blank rows to ``padded_size``, if that was given.

        Raises:
            SamplingError: there are none, and a part of the structure cannot be cut to none; or it cannot be padded.
        """
        batch = self._collated(records)
        return batch if self.padded_size is None else pad(batch, len(records), self.padded_size, "batch")

    def _collated(self, records: Any) -> Any:
        if not (isinstance(records, (list, tuple)) and len(records) == 0):
            return self.collate(records)
        if not self._empty:
            # Fetched anew for each call, as collate functions may change their records.
            one = self.collate(self._fetch([0]))
            two = self.collate(self._fetch([0, 0]))
            self._empty.append(_cut(one, two, "batch"))
        empty = self._empty[0]
        return _cut(empty, empty, "batch")  # anew, so that batches share nothing

    def _fetch(self, indices: list[int]) -> Any:
        if isinstance(self.dataset, _FetchesMany):
            return self.dataset.__getitems__(indices)
        return [self.dataset[index] for index in indices]


def _cut(one: Any, two: Any, where: str) -> Any:
    """``one`` without its one record; ``two`` is the same collated from two records."""
    if type(one) is not type(two):
        raise _refusal(where, one)
    if one is None:
        return None
    if isinstance(one, torch.Tensor):
        if one.dim() == 0:
            raise _refusal(where, one)
        return one.detach()[:0].clone()  # a view would keep the record
    if isinstance(one, Mapping):
        return _cut_mapping(one, two, where)
    if isinstance(one, (list, tuple)):
        return _cut_sequence(one, two, where)
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        names = [field.name for field in dataclasses.fields(one) if field.init]
        cut = {name: _cut(getattr(one, name), getattr(two, name), f"{where}.{name}") for name in names}
        return dataclasses.replace(one, **cut)
    raise _refusal(where, one)


def _cut_mapping(one: Mapping[Any, Any], two: Mapping[Any, Any], where: str) -> Any:
    if one.keys() != two.keys():
        raise _refusal(where, one)
    cut = {key: _cut(one[key], two[key], f"{where}[{key!r}]") for key in one}
    if isinstance(one, MutableMapping):
        # A copy keeps what a subclass carries besides its items.
        clone = copy.copy(one)
        clone.update(cut)
        return clone
    return type(one)(cut)  # type: ignore[call-arg]


def _cut_sequence(one: Any, two: Any, where: str) -> Any:
    if isinstance(one, PackedSequence):
        raise _refusal(where, one)
    if type(one) in (list, tuple) and (len(one), len(two)) == (1, 2):  # one element per record
        return type(one)()
    if len(one) != len(two):
        raise _refusal(where, one)
    cut = [_cut(one[i], two[i], f"{where}[{i}]") for i in range(len(one))]
    if type(one) in (list, tuple):
        return type(one)(cut)
    if isinstance(one, IsNamedTuple):
        return one._replace(**dict(zip(one._fields, cut, strict=True)))
    raise _refusal(where, one)


def _refusal(where: str, value: Any) -> SamplingError:
    kind = "a tensor without dimensions" if isinstance(value, torch.Tensor) else type(value).__name__
    return SamplingError(
        f"Poisson sampling drew an empty batch, which must be trained on too, but {where} as collate_fn "
        f"returns it is {kind}, and it is not known how to cut that to no records. Let collate_fn return "
        "tensors whose first dimension is the batch, lists with one element per record, or tuples, dicts, "
        "namedtuples and dataclasses of those."
    )
