"""Every model of the table, in every way of training it that the table shows."""

import warnings
from typing import Any

import pytest
import torch
from benchmarks.models_table import measure
from benchmarks.zoo.entry import cast, in_bfloat16

from benchmarks import zoo
from tacit.errors import CoupledLossWarning, PrivacyError
from tacit.testing import check_exactness, private_gradients

MODES = pytest.mark.parametrize("mode", ["auto", "hooks", "ghost"])
REFUSED = ("WGAN-GP critic",)
NAMES = pytest.mark.parametrize("name", [name for name in zoo.MODELS if name not in REFUSED])
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]


def having(way: zoo.Way) -> Any:
    names = [name for name, entry in zoo.MODELS.items() if way in zoo.ways_of(entry) and name not in REFUSED]
    return pytest.mark.parametrize("name", names)


def hold(name: str, way: zoo.Way, mode: str = "auto", B: int = 3, T: int = 5) -> None:
    entry = zoo.MODELS[name]
    report = check_exactness(
        zoo.ways_of(entry)[way](),
        entry.loss,
        entry.batch_of(B, T),
        grad_sample_mode=mode,
        tolerance=entry.precision,
    )
    assert float(report.reference.norms.max()) > 0


@MODES
@NAMES
def test_full(name: str, mode: str) -> None:
    hold(name, "full", mode)


@pytest.mark.parametrize(("B", "T"), [(4, 4), (1, 2), (2, 2)])
@NAMES
def test_sizes_that_coincide(name: str, B: int, T: int) -> None:
    hold(name, "full", "auto", B, T)


@MODES
@having("LoRA")
def test_adapters(name: str, mode: str) -> None:
    hold(name, "LoRA", mode)


@pytest.mark.parametrize("way", ["checkpointing", "checkpointing, reentrant"])
@having("checkpointing")
def test_checkpointing(name: str, way: zoo.Way) -> None:
    hold(name, way)


@NAMES
def test_bfloat16(name: str) -> None:
    entry = zoo.MODELS[name]
    model, batch = zoo.ways_of(entry)["bf16"](), cast(entry.batch_of(), torch.float32)
    norms, _ = private_gradients(model, in_bfloat16(entry.loss), batch, max_grad_norm=1.0)
    exactly, _ = private_gradients(model, entry.loss, batch, max_grad_norm=1.0)
    torch.testing.assert_close(norms, exactly, rtol=0.1, atol=0.0)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    entry = zoo.MODELS[name]
    with pytest.raises(PrivacyError, match="gradient penalties"):
        private_gradients(entry.model(), entry.loss, entry.batch_of(), max_grad_norm=1.0)
    assert measure(entry, "full") == "refused"


@MODES
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("name", zoo.HUGGING_FACE)
def test_the_loss_that_the_model_computes_itself(name: str, mode: str, ignored: bool) -> None:
    """A mean over tokens is each sample's own mean, also if samples have different numbers of them."""
    entry = zoo.MODELS[name]
    batch = {key: value for key, value in entry.batch_of(3, 5).items() if key not in ("y", "decoder_input_ids")}
    if name == "ViT":
        batch["labels"] = torch.tensor([0, 2, 1])
    else:
        batch["labels"] = batch["input_ids"].clone()
        batch["labels"][1, 2:] = -100 if ignored else 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoupledLossWarning)
        report = check_exactness(
            entry.model(), lambda m, b: m(**b).loss, batch, grad_sample_mode=mode, tolerance=max(entry.precision, 1e-6)
        )
    assert float(report.reference.norms.min()) > 0
