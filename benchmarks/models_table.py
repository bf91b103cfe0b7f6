"""Write ``docs/models.md``: models × ways of training them, with the measured distance from the loop.

Run ``python -m benchmarks.models_table``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import zoo
from benchmarks.zoo.entry import cast, in_bfloat16
from tacit.checking.compare import compare
from tacit.errors import TacitError
from tacit.testing import private_gradients, single_sample_loop

TARGET = Path(__file__).parent.parent / "docs" / "models.md"
INTRO = """# Models

Each model below has random weights and is trained unchanged. The number is the largest of two relative errors against a
plain loop over single samples in float64: that of a sample's gradient norm, and that of the clipped sum. "bf16" runs
the private step under `torch.autocast` with bfloat16 on float32 weights, so it shows the rounding of bfloat16 itself.
Models that compute in float32 inside (normalization, routers) cannot agree better than that. "refused" is an error in
words, before anything is released; "—" is a way that does not exist for the model.

Written by `python -m benchmarks.models_table`.
"""


def measure(entry: zoo.Entry, way: zoo.Way) -> str:
    """The larger of the errors of norms and clipped sum, or that it is refused."""
    build = zoo.ways_of(entry).get(way)
    if build is None:
        return "—"
    model, batch = build(), entry.batch_of()
    loss = entry.loss
    if way == "bf16":
        loss, batch = in_bfloat16(loss), cast(batch, torch.float32)
    reference = single_sample_loop(entry.model() if way == "bf16" else model, entry.loss, entry.batch_of())
    try:
        norms, sums = private_gradients(model, loss, batch, max_grad_norm=reference.max_grad_norm)
    except TacitError:
        return "refused"
    found = compare(reference, norms, sums)
    return f"{max(found.norm_error, found.sum_error):.0e}"


def table(title: str, entries: Mapping[str, zoo.Entry], ways: Sequence[zoo.Way]) -> str:
    head = ["adapter" if way == "full" and "LoRA" not in ways else way for way in ways]
    lines = [["model", *head], ["---"] * (len(ways) + 1)]
    lines += [[name, *(measure(entry, way) for way in ways)] for name, entry in entries.items()]
    return f"\n## {title}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def main() -> None:
    warnings.simplefilter("ignore")
    text = INTRO
    text += table("Hugging Face", zoo.HUGGING_FACE, zoo.WAYS)
    text += table("PEFT, on a frozen model", zoo.ADAPTERS, [way for way in zoo.WAYS if way != "LoRA"])
    text += table("Others", zoo.BROUGHT, zoo.WAYS)
    TARGET.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
