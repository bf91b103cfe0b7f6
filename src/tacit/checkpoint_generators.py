"""Generators that the user gave, in a checkpoint: a run that goes on from it draws on, and makes other noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tacit.attachment import Attachment
from tacit.distributed import Group
from tacit.entropy import system_generator
from tacit.errors import CheckpointError
from tacit.sampling import user_generator


def states(attached: Attachment, group: Group | None) -> dict[str, Any]:
    """States of generators that the user gave. The others are secret: saving them would reveal noise and draws."""
    source = user_generator(attached.loader.source)
    noise = attached.noise.state_dict()
    if group is not None and "block" in noise:  # go on behind what any shard has drawn, whoever holds it then
        noise["block"] = max(group.gathered(noise["block"]))
    return {"noise": noise, "loader": None if source is None else source.get_state()}


def check(saved: Mapping[str, Any], attached: Attachment, path: Path | str) -> None:
    """Refuse what the generators would refuse when model and optimizer are loaded already."""
    try:
        attached.noise.check_state(saved.get("noise", {}))
        source, state = user_generator(attached.loader.source), saved.get("loader")
        if source is not None and state is not None:
            source.clone_state().set_state(state)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not fit: generators cannot go on ({error}). Nothing was changed."
        ) from error


def restore(attached: Attachment, saved: Mapping[str, Any]) -> None:
    """Go on where the generators were; but draw batches anew where the noise is new, too.

    Epsilon counts on each release's batch being drawn by itself. The batches that were drawn behind the checkpoint,
    drawn once more, are released once more with other noise.
    """
    attached.noise.load_state_dict(saved.get("noise", {}))
    source, state = user_generator(attached.loader.source), saved.get("loader")
    if source is not None and state is not None:
        again = attached.noise.reproducible or not attached.loader.sampling.amplified
        source.set_state(state if again else system_generator().get_state())
