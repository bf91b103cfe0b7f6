"""Tensors in a folder of torch.distributed.checkpoint: each process writes its own part, and reads what it then needs.

The folder is torch's own: its tools read it, too.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from tacit.distributed.group import Group, explained
from tacit.errors import CheckpointError

Digests = dict[str, str]
"""SHA-256 of files, by their names in the folder."""

_METADATA = ".metadata"


def write_shards(folder: Path, tensors: Mapping[str, Tensor], group: Group) -> Digests:
    """Write tensors into an empty folder that all processes see. Each must call it, with what it has of them.

    Args:
        folder: where to.
        tensors: by name. Of one that is spread over processes each writes its part; one that several have as a whole
            is written by one of them.
        group: the processes.

    Returns:
        The digests of all files.

    Raises:
        CheckpointError: a process could not write; in each.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = FileSystemWriter(folder, overwrite=False)
    with _in_words(f"cannot write into {folder}"), explained():
        save(dict(tensors), storage_writer=writer, no_dist=group.count == 1)

    def own() -> Digests:
        paths = [*folder.glob(f"__{group.rank}_*"), *([folder / _METADATA] if group.rank == 0 else [])]
        return {path.name: digest_of(path) for path in paths}

    every = group.gathered(group.together(own, lambda _: {}))
    return {name: digest for digests in every for name, digest in digests.items()}


def read_shards(folder: Path, tensors: Mapping[str, Tensor], digests: Digests, group: Group) -> None:
    """Fill tensors from a folder; each process those that it has, and for itself.

    Of n processes each looks at every n-th file as a whole: what one finds damaged, the others must hear from it.

    Args:
        folder: where from.
        tensors: by name; of one that is spread over processes this process's part is read. They may be changed if it
            fails.
        digests: of all files in it.
        group: the processes.

    Raises:
        CheckpointError: a file is missing or damaged, or does not have such tensors.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    for name in (_METADATA, *sorted(digests.keys() - {_METADATA})[group.rank :: group.count]):
        _check_file(folder, name, digests)
    with _in_words(f"{folder} is damaged, or of another model"):
        load(dict(tensors), storage_reader=FileSystemReader(folder), no_dist=True)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(folder: Path, name: str, digests: Digests) -> None:
    try:
        found = digest_of(folder / name)
    except OSError as error:
        raise CheckpointError(f"{folder} is not whole: {name} cannot be read ({error.strerror}).") from error
    if found != digests.get(name):
        raise CheckpointError(
            f"{folder} is damaged: {name} is not the file that was saved with the others, or was changed since."
        )


@contextmanager
def _in_words(failed: str) -> Iterator[None]:
    """Raise what torch.distributed.checkpoint raises as an error of a checkpoint."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # as was asked for
            yield
    except CheckpointException as error:  # it derives from BaseException
        causes = {number: cause for number, (cause, _) in error.failures.items()}
        words = "; ".join(f"{type(cause).__name__}: {str(cause).splitlines()[0]}" for cause in causes.values())
        raise CheckpointError(f"{failed} ({words}).") from error
