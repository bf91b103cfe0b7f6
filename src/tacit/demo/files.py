"""The folder of a run, and writing into it all or nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tacit.errors import ConfigurationError

CHECKPOINT = "checkpoint.pt"
RECORD = "run.json"
PRIVACY = "privacy.json"


def prepare_folder(folder: Path) -> None:
    """Create ``folder`` and see that it can be written.

    Raises:
        ConfigurationError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written ({error.strerror}), so the run could not be saved: pass another --out."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Replace the file at ``path`` by one with ``text`` once that is whole on disk."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
