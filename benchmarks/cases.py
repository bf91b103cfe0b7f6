"""What is benchmarked: a model and one batch of random data, at full size or tiny for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks import models

CLASSES = 10

Build = Callable[..., tuple[nn.Module, TensorDataset]]
"""``(batch=…, **sizes) -> model and one batch of records``."""


@dataclass(frozen=True)
class Case:
    """One model at one batch size.

    Attributes:
        name: what ``--case`` calls it.
        about: one line for the reader of the table.
        build: makes the model and its data.
        sizes: keyword arguments of ``build``, ``batch`` among them.
        tiny: what to replace in ``sizes`` where only the harness is tested.
        criterion: the loss, of the model's output and the labels.
        alone: time each contestant with plain alone, in a process of its own: buffers of other kinds leave a
            convolution's allocator in a state in which page faults double its time.
    """

    name: str
    about: str
    build: Build
    sizes: Mapping[str, Any]
    tiny: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy
    alone: bool = False

    def make(self, **overrides: Any) -> tuple[nn.Module, TensorDataset]:
        """Build the case, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build(**{**self.sizes, **overrides})


def labels(batch: int) -> torch.Tensor:
    return torch.randint(CLASSES, (batch,))


def mlp(batch: int, inputs: int, hidden: tuple[int, ...]) -> tuple[nn.Module, TensorDataset]:
    data = TensorDataset(torch.randn(batch, inputs), labels(batch))
    return models.mlp(inputs, hidden, CLASSES), data


def _convnet(batch: int, pixels: int, widths: tuple[int, ...], groups: int) -> tuple[nn.Module, TensorDataset]:
    data = TensorDataset(torch.randn(batch, 3, pixels, pixels), labels(batch))
    return models.convnet(widths, groups, CLASSES), data


def encoder(
    batch: int, positions: int, vocabulary: int, width: int, layers: int, heads: int
) -> tuple[nn.Module, TensorDataset]:
    data = TensorDataset(torch.randint(vocabulary, (batch, positions)), labels(batch))
    return models.Encoder(vocabulary, positions, width, layers, heads, CLASSES), data


def _recurrent(
    batch: int, positions: int, vocabulary: int, embedding: int, hidden: int
) -> tuple[nn.Module, TensorDataset]:
    data = TensorDataset(torch.randint(vocabulary, (batch, positions)), labels(batch))
    return models.TextClassifier(vocabulary, embedding, hidden, CLASSES), data


def _words(batch: int, positions: int, vocabulary: int, width: int) -> tuple[nn.Module, TensorDataset]:
    data = TensorDataset(torch.randint(vocabulary, (batch, positions)), labels(batch))
    return models.BagOfWords(vocabulary, width, CLASSES), data


def language(
    batch: int, positions: int, vocabulary: int, width: int, layers: int, heads: int, rank: int
) -> tuple[nn.Module, TensorDataset]:
    ids = torch.randint(vocabulary, (batch, positions))
    return models.LanguageModel(vocabulary, positions, width, layers, heads, rank), TensorDataset(ids, ids)


def token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The mean over samples of the mean over their tokens."""
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return each.mean(1).mean()


def _resnet(
    batch: int, pixels: int, widths: tuple[int, ...], blocks: int, groups: int
) -> tuple[nn.Module, TensorDataset]:
    data = TensorDataset(torch.randn(batch, 3, pixels, pixels), labels(batch))
    return models.resnet(widths, blocks, groups, CLASSES), data


TINY_ENCODER = {"batch": 4, "positions": 6, "vocabulary": 11, "width": 8, "layers": 1, "heads": 2}
GPT2 = {"batch": 8, "positions": 128, "vocabulary": 8000, "width": 256, "layers": 4, "heads": 4}
TINY_GPT2 = {"batch": 3, "positions": 6, "vocabulary": 11, "width": 8, "layers": 1, "heads": 2}

CASES = (
    Case(
        "mlp",
        "784-1024-1024-10, batch 256",
        mlp,
        {"batch": 256, "inputs": 784, "hidden": (1024, 1024)},
        {"batch": 4, "inputs": 6, "hidden": (5, 5)},
    ),
    Case(
        "convnet",
        "6 convolutions of 32 to 128 channels with GroupNorm, 32 × 32 RGB, batch 64",
        _convnet,
        {"batch": 64, "pixels": 32, "widths": (32, 32, 64, 64, 128, 128), "groups": 8},
        {"batch": 4, "pixels": 8, "widths": (2, 2, 4, 4, 4, 4), "groups": 2},
        alone=True,
    ),
    Case(
        "encoder",
        "transformer encoder, d = 256, 4 layers, 4 heads, T = 128, batch 16",
        encoder,
        {"batch": 16, "positions": 128, "vocabulary": 1000, "width": 256, "layers": 4, "heads": 4},
        TINY_ENCODER,
    ),
    Case(
        "wide-encoder",
        "transformer encoder, d = 512, 4 layers, 8 heads, T = 64, batch 16",
        encoder,
        {"batch": 16, "positions": 64, "vocabulary": 1000, "width": 512, "layers": 4, "heads": 8},
        TINY_ENCODER,
    ),
    Case(
        "lstm",
        "LSTM text classifier, embedding 64, hidden 128, T = 64, batch 32",
        _recurrent,
        {"batch": 32, "positions": 64, "vocabulary": 1000, "embedding": 64, "hidden": 128},
        {"batch": 4, "positions": 6, "vocabulary": 11, "embedding": 4, "hidden": 5},
    ),
    Case(
        "embedding",
        "embedding 50,000 × 128, mean over T = 64, linear, batch 64",
        _words,
        {"batch": 64, "positions": 64, "vocabulary": 50_000, "width": 128},
        {"batch": 4, "positions": 6, "vocabulary": 11, "width": 5},
    ),
    Case(
        "gpt2",
        "GPT-2, d = 256, 4 layers, 8,000 tokens, T = 128, batch 8",
        language,
        {**GPT2, "rank": 0},
        TINY_GPT2,
        token_loss,
    ),
    Case("gpt2-lora", "the same, LoRA of rank 8 on c_attn", language, {**GPT2, "rank": 8}, TINY_GPT2, token_loss),
    Case(
        "resnet",
        "ResNet-20 shape with GroupNorm, widths 16-32-64, 32 × 32 RGB, batch 32",
        _resnet,
        {"batch": 32, "pixels": 32, "widths": (16, 32, 64), "blocks": 3, "groups": 8},
        {"batch": 4, "pixels": 8, "widths": (2, 4), "blocks": 1, "groups": 2},
        alone=True,
    ),
)
