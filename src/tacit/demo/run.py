"""The demo from start to end."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tacit.demo.data import Digits, load
from tacit.demo.files import CHECKPOINT, RECORD, prepare_folder
from tacit.demo.options import DemoOptions
from tacit.demo.plain import train_plain
from tacit.demo.private import PrivateRun
from tacit.demo.progress import TrainingProgress
from tacit.demo.record import read_record
from tacit.demo.results import DemoResult, write_results
from tacit.errors import ConfigurationError, TacitError
from tacit.numbers import upward


class DemoInterrupt(KeyboardInterrupt):
    """Ctrl-C after the run was planned and saved."""


def run_demo(
    given: Mapping[str, Any],
    folder: Path,
    *,
    resume: bool = False,
    on_step: Callable[[int], None] = lambda _: None,
) -> DemoResult:
    """Train with and without privacy and write the report.

    Args:
        given: options by name, as of :class:`DemoOptions`; those left out have their default, or on resuming
            their saved value.
        folder: where everything is written.
        resume: go on with the run that was saved there.
        on_step: called with the number of releases after each.

    Raises:
        ConfigurationError: an option has no meaning here, or differs from the run to resume.
        CheckpointError: what is to be resumed is torn or of another plan.
        DemoInterrupt: Ctrl-C; the run is saved, and the message says how to go on.
    """
    private, digits = _resumed(given, folder) if resume else _started(given, folder)
    try:
        with _one_thread(), TrainingProgress() as progress:
            private.train(progress, on_step)
            plain = train_plain(private.record.options, digits, progress)
        return write_results(private, plain, digits, folder)
    except KeyboardInterrupt as interrupt:
        raise DemoInterrupt(
            f"interrupted after {private.steps} of {private.planned_steps} steps, at epsilon "
            f"{upward(private.epsilon)}; go on with: tacit demo --resume --out {shlex.quote(str(folder))}"
        ) from interrupt
    except OSError as error:
        raise TacitError(
            f"the report cannot be written in {folder} ({error.strerror}): make room there, then --resume."
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """So small a network gains little from more threads, and waits long for them where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _started(given: Mapping[str, Any], folder: Path) -> tuple[PrivateRun, Digits]:
    options = DemoOptions(**given)
    digits = load(options.seed)
    if options.batch_size > digits.records:
        raise ConfigurationError(
            f"batch_size is {options.batch_size}, and there are only {digits.records} images to train on: pass at "
            "most that many."
        )
    prepare_folder(folder)
    return PrivateRun.start(options, digits, folder), digits


def _resumed(given: Mapping[str, Any], folder: Path) -> tuple[PrivateRun, Digits]:
    if not (folder / CHECKPOINT).is_file():
        raise ConfigurationError(
            f"there is no {folder / CHECKPOINT}, so there is nothing to resume: start without --resume, or pass the "
            "--out of the run."
        )
    record = read_record(folder / RECORD)
    record.options.check_unchanged(given)
    prepare_folder(folder)
    digits = load(record.options.seed)
    return PrivateRun.resume(record, digits, folder), digits
