"""Every model of the table, full, with adapters and checkpointed, in every mode."""

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import zoo
from tacit.testing import check_exactness, private_gradients

MODES = pytest.mark.parametrize("mode", ["auto", "hooks", "ghost"])
NAMES = pytest.mark.parametrize("name", zoo.MODELS)
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]
# They normalize, or route, in float32 inside.
IN_FLOAT32 = {"Llama", "Mistral", "Qwen3", "Mixtral", "T5"}


def hold(name: str, model: nn.Module, mode: str, B: int = 3, T: int = 5) -> None:
    report = check_exactness(
        model,
        zoo.loss_of,
        zoo.batch_of(name, B, T),
        grad_sample_mode=mode,
        tolerance=1e-6 if name in IN_FLOAT32 else 1e-9,
    )
    assert float(report.reference.norms.max()) > 0


@MODES
@NAMES
def test_full(name: str, mode: str) -> None:
    hold(name, zoo.build(name), mode)


@NAMES
def test_sizes_that_coincide(name: str) -> None:
    hold(name, zoo.build(name), "auto", 4, 4)
    hold(name, zoo.build(name), "auto", 1, 2)


@MODES
@NAMES
def test_adapters(name: str, mode: str) -> None:
    hold(name, zoo.with_lora(name), mode)


@pytest.mark.parametrize("reentrant", [True, False])
@NAMES
def test_checkpointing(name: str, reentrant: bool) -> None:
    if reentrant and name == "ViT":
        pytest.skip("it has no input embeddings to require a gradient")
    hold(name, zoo.checkpointed(zoo.build(name), reentrant=reentrant), "auto")


@NAMES
def test_bfloat16(name: str) -> None:
    model, batch = zoo.build(name).float(), zoo.batch_of(name)
    batch = {key: value.float() if value.is_floating_point() else value for key, value in batch.items()}

    def loss(m: nn.Module, b: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return zoo.loss_of(m, b)

    norms, _ = private_gradients(model, loss, batch, max_grad_norm=1.0)
    exactly, _ = private_gradients(model, zoo.loss_of, batch, max_grad_norm=1.0)
    torch.testing.assert_close(norms, exactly, rtol=0.1, atol=0.0)
