"""Longer cases: long sequences, wide layers, large vocabularies, larger shapes, and batches from 1 to 1024.

Each is sized so that a plain step takes about a second at most on two cores.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks import long_models
from benchmarks.cases import CLASSES, GPT2, TINY_ENCODER, TINY_GPT2, Case, encoder, labels, language, mlp, token_loss

MLP_BATCHES = (1, 4, 16, 64, 1024)
"""Beside the 256 of the case ``mlp``."""


def _bert(
    batch: int, positions: int, vocabulary: int, width: int, layers: int, heads: int
) -> tuple[nn.Module, TensorDataset]:
    data = TensorDataset(torch.randint(vocabulary, (batch, positions)), labels(batch))
    return long_models.Bert(vocabulary, positions, width, layers, heads, CLASSES), data


def _vit(batch: int, pixels: int, patch: int, width: int, layers: int, heads: int) -> tuple[nn.Module, TensorDataset]:
    data = TensorDataset(torch.randn(batch, 3, pixels, pixels), labels(batch))
    return long_models.VisionTransformer(pixels, patch, width, layers, heads, CLASSES), data


def _convnext(
    batch: int, pixels: int, widths: tuple[int, ...], depths: tuple[int, ...]
) -> tuple[nn.Module, TensorDataset]:
    data = TensorDataset(torch.randn(batch, 3, pixels, pixels), labels(batch))
    return long_models.convnext(widths, depths, CLASSES), data


LONG_CASES = (
    Case(
        "encoder-512",
        "transformer encoder, d = 256, 4 layers, 4 heads, T = 512, batch 4",
        encoder,
        {"batch": 4, "positions": 512, "vocabulary": 1000, "width": 256, "layers": 4, "heads": 4},
        TINY_ENCODER,
    ),
    Case(
        "encoder-1024",
        "transformer encoder, d = 256, 4 layers, 4 heads, T = 1024, batch 4",
        encoder,
        {"batch": 4, "positions": 1024, "vocabulary": 1000, "width": 256, "layers": 4, "heads": 4},
        TINY_ENCODER,
    ),
    Case(
        "wide-1024",
        "transformer encoder, d = 1024, 2 layers, 16 heads, T = 128, batch 4",
        encoder,
        {"batch": 4, "positions": 128, "vocabulary": 1000, "width": 1024, "layers": 2, "heads": 16},
        TINY_ENCODER,
    ),
    Case(
        "gpt2-32k",
        "GPT-2, d = 256, 4 layers, 32,000 tokens, T = 128, batch 8",
        language,
        {**GPT2, "vocabulary": 32_000, "rank": 0},
        TINY_GPT2,
        token_loss,
    ),
    Case(
        "bert",
        "BERT, d = 512, 4 layers, 8 heads, 30,522 tokens, T = 128, batch 8",
        _bert,
        {"batch": 8, "positions": 128, "vocabulary": 30_522, "width": 512, "layers": 4, "heads": 8},
        TINY_ENCODER,
    ),
    Case(
        "vit",
        "ViT-Tiny/16, d = 192, 12 layers, 224 × 224 RGB, batch 4",
        _vit,
        {"batch": 4, "pixels": 224, "patch": 16, "width": 192, "layers": 12, "heads": 3},
        {"batch": 4, "pixels": 8, "patch": 4, "width": 8, "layers": 1, "heads": 2},
        alone=True,
    ),
    Case(
        "convnext",
        "ConvNeXt-Atto, widths 40 to 320, 112 × 112 RGB, batch 16",
        _convnext,
        {"batch": 16, "pixels": 112, "widths": (40, 80, 160, 320), "depths": (2, 2, 6, 2)},
        {"batch": 4, "pixels": 16, "widths": (4, 6), "depths": (1, 1)},
        alone=True,
    ),
    *(
        Case(
            f"mlp-{batch}",
            f"784-1024-1024-10, batch {batch}",
            mlp,
            {"batch": batch, "inputs": 784, "hidden": (1024, 1024)},
            {"batch": 4, "inputs": 6, "hidden": (5, 5)},
        )
        for batch in MLP_BATCHES
    ),
)
