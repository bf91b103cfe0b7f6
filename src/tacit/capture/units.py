"""What the user says of which rows are one unit of privacy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tacit.errors import ConfigurationError, PrivacyError
from tacit.uses import Units


def units_of(index: Tensor, rows: int, records: int | None) -> Units:
    """Check and read a sample index.

    Args:
        index: the unit of each row.
        rows: the number of rows of the batch.
        records: how many records the loader has handed out; None if that is not known.

    Raises:
        ConfigurationError: it does not fit the batch.
        PrivacyError: units are not records, so that no accounting event covers them.
    """
    check_index(index)
    if len(index) != rows:
        raise ConfigurationError(
            f"the sample index has {len(index)} entries and the batch {rows} rows: one for each row."
        )
    units = Units(index)
    if records is not None and units.count != records:
        raise PrivacyError(
            f"the sample index names {units.count} units, and {records} records are at hand. The loader draws each "
            "record by itself: a unit of several records is drawn with another probability than epsilon was computed "
            "for, and a record of it can move the clipped sum by twice the bound. Let one item of the data set be one "
            "unit (all rows of one user, all augmentations of one image), and let collate_fn put the rows together."
        )
    return units


def check_index(index: object) -> None:
    """Raise ConfigurationError unless ``index`` is a vector of integers."""
    if not isinstance(index, Tensor) or index.dim() != 1 or index.is_floating_point() or index.dtype == torch.bool:
        found = f"a {type(index).__name__}"
        if isinstance(index, Tensor):
            found = f"{index.dtype} {tuple(index.shape)}"
        raise ConfigurationError(f"the sample index is {found}: it must be a tensor of integers, one for each row.")


def read_field(batch: Any, field: str | int) -> Tensor:
    """Return the sample index that a batch carries.

    Raises:
        ConfigurationError: it has no such field.
    """
    try:
        indexed: Any = batch
        found = indexed[field] if isinstance(batch, (Mapping, list, tuple)) else getattr(batch, str(field))
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"sample_index={field!r}: the batch, a {type(batch).__name__}, has no such field. Give the key of a dict, "
            "or the place in a tuple, where collate_fn puts the unit of each row."
        ) from error
    check_index(found)
    return found  # type: ignore[no-any-return]
