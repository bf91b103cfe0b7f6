"""Write ``docs/models.md``: models × ways of training them, with the measured distance from the loop.

Run ``python -m benchmarks.models_table``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import zoo
from tacit.errors import TacitError
from tacit.testing import private_gradients, single_sample_loop

TARGET = Path(__file__).parent.parent / "docs" / "models.md"
INTRO = """# Models

Each model below is Hugging Face's own class with random weights, trained unchanged. The number is the largest of two
relative errors against a plain loop over single samples in float64: that of a sample's gradient norm, and that of the
clipped sum. "bf16" runs the private step under `torch.autocast` with bfloat16, so it shows the rounding of bfloat16
itself. "refused" is an error in words, before anything is released: T5 hands a bias that depends on parameters alone
from block to block, through reentrant checkpoints. Models that compute in float32 inside (normalization, routers)
cannot agree better than that.

Written by `python -m benchmarks.models_table`.

"""


def error(model: nn.Module, batch: Any, run: Callable[..., Tensor]) -> float:
    """The larger of the errors of norms and clipped sum."""
    reference = single_sample_loop(model, zoo.loss_of, batch)
    norms, sums = private_gradients(model, run, batch, max_grad_norm=reference.max_grad_norm)
    whole = torch.stack([g.norm() for g in reference.sums.values()]).norm()
    apart = torch.stack([(sums[name].double() - g).norm() for name, g in reference.sums.items()]).norm()
    return max(float(((norms - reference.norms) / reference.norms).abs().max()), float(apart / whole))


def in_bfloat16(model: nn.Module, batch: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return zoo.loss_of(model, batch)


def row(name: str) -> list[str]:
    batch = zoo.batch_of(name)
    single = {key: value.float() if value.is_floating_point() else value for key, value in batch.items()}
    errors: list[float | str] = [
        error(zoo.build(name), batch, zoo.loss_of),
        error(zoo.with_lora(name), batch, zoo.loss_of),
        error(zoo.checkpointed(zoo.build(name), reentrant=False), batch, zoo.loss_of),
        _or_refused(lambda: error(zoo.checkpointed(zoo.build(name), reentrant=True), batch, zoo.loss_of), name),
        error(zoo.build(name).float(), single, in_bfloat16),
    ]
    return [name, *(value if isinstance(value, str) else f"{value:.0e}" for value in errors)]


def _or_refused(measure: Callable[[], float], name: str) -> float | str:
    if name == "ViT":
        return "—"
    try:
        return measure()
    except TacitError:
        return "refused"


def main() -> None:
    warnings.simplefilter("ignore")
    head = ["model", "full", "LoRA", "checkpointing", "checkpointing, reentrant", "bf16"]
    rows = [head, ["---"] * len(head), *(row(name) for name in zoo.MODELS)]
    TARGET.write_text(INTRO + "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n")
    print(TARGET.read_text())


if __name__ == "__main__":
    main()
