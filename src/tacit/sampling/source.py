"""Which DataLoaders can be made private, and the way out for the others."""

from collections.abc import Sized
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from tacit.errors import SamplingError
from tacit.sampling.loader import PrivateLoader


def check_source(loader: DataLoader[Any], poisson: bool) -> int:
    """Check that a privacy proof is known for the batches made from ``loader``.

    Args:
        loader: the loader the user built.
        poisson: its batches are to be replaced by Poisson sampling; else they are used as they are.

    Returns:
        The number of records in its dataset.

    Raises:
        SamplingError: no proof is known; the message names the way out.
    """
    _check_loader(loader)
    records = _check_dataset(loader.dataset)
    _check_batches(loader)
    _check_order(loader.sampler, records)
    size = loader.batch_size
    if poisson and loader.drop_last and size is not None and records % size:
        raise SamplingError(
            f"The DataLoader has drop_last=True, and {records} records are no multiple of its batch size "
            f"{size}. Poisson sampling leaves no record out, and dropping the last batch would change the "
            "sample rate 1 / len(loader) unnoticed. Build the DataLoader with drop_last=False."
        )
    if len(loader) == 0:
        raise SamplingError(
            f"The DataLoader has no batch: drop_last=True, and {records} records are fewer than its batch "
            f"size {size}. Choose a smaller batch_size."
        )
    return records


def _check_loader(loader: object) -> None:
    if not isinstance(loader, DataLoader):
        raise SamplingError(
            f"Expected a torch.utils.data.DataLoader, found {type(loader).__name__}; how it draws its "
            "batches is not known, so no epsilon can be stated. Wrap the dataset in a DataLoader."
        )
    if isinstance(loader, PrivateLoader):
        raise SamplingError(
            "This loader is already private; its batches belong to the run it was made for, and sharing "
            "them would release each twice. Pass the original DataLoader."
        )
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise SamplingError(
            f"{type(loader).__name__} overrides DataLoader.__iter__, which the private loader could not "
            "keep, and what it does to the batches is not known. Build a plain DataLoader; change batches in "
            "collate_fn."
        )


def _check_dataset(dataset: object) -> int:
    if isinstance(dataset, IterableDataset):
        raise SamplingError(
            f"{type(dataset).__name__} is an IterableDataset: its records come in a stream and cannot be "
            "sampled independently of each other. Make it map-style: write the records, or an index of "
            "where they are, to disk, and return record i from __getitem__(i)."
        )
    if not isinstance(dataset, Sized):
        raise SamplingError(
            f"{type(dataset).__name__} has no __len__, and without the number of records there is no sample "
            "rate and no epsilon. Define __len__."
        )
    if len(dataset) == 0:
        raise SamplingError(
            f"{type(dataset).__name__} is empty; there is nothing to sample. Pass a dataset with records."
        )
    return len(dataset)


def _check_batches(loader: DataLoader[Any]) -> None:
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
        raise SamplingError(
            "The DataLoader was built with batch_sampler=... or batch_size=None; no privacy proof is known "
            "for batches drawn that way. Build it with batch_size=... and, if you like, shuffle=True."
        )
    if loader.num_workers > 0 and not loader.in_order:
        raise SamplingError(
            "The DataLoader has in_order=False: batches come back in another order than they were drawn, "
            "and could not be matched to their draws. Build it with in_order=True, the default."
        )


def _check_order(sampler: object, records: int) -> None:
    if type(sampler) is SequentialSampler and len(sampler) == records:
        return
    if type(sampler) is RandomSampler:
        whole = len(sampler) == len(sampler.data_source) == records
        if whole and not sampler.replacement:
            return
    ways_out = {
        WeightedRandomSampler: "Use tacit.sampling.WeightedPoissonSampling with public weights, or weigh the loss.",
        SubsetRandomSampler: "Use torch.utils.data.Subset(dataset, indices) with shuffle=True instead.",
        DistributedSampler: "Use torch's own DistributedSampler, or shuffle=True: the private loader parts batches "
        "among processes by itself.",
    }
    way_out = "Leave sampler= out; use shuffle=True, or torch.utils.data.Subset to train on a part."
    for kind, words in ways_out.items():
        if isinstance(sampler, kind):
            way_out = words
    raise SamplingError(
        f"The DataLoader draws with sampler={type(sampler).__name__}; a privacy proof is known only for "
        f"SequentialSampler and for RandomSampler without replacement over all {records} records. {way_out}"
    )
