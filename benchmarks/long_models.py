"""Models of the longer cases, in the shapes of their papers and in modules that every contestant supports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import EncoderBlock


class VisionTransformer(nn.Module):
    """``(B, 3, H, W)`` images in patches (Dosovitskiy 2021, arXiv:2010.11929), averaged instead of a class token."""

    def __init__(self, pixels: int, patch: int, width: int, layers: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Embedding((pixels // patch) ** 2, width)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]).contiguous()
        logits: Tensor = self.head(self.norm(self.blocks(x + self.positions(places))).mean(1))
        return logits


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed


class ConvNextBlock(nn.Module):
    """A depthwise 7 × 7 convolution and a feed-forward over channels, without the scale of each layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        fed: Tensor = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        return x + fed


def convnext(widths: Sequence[int], depths: Sequence[int], classes: int) -> nn.Module:
    """The shape of ConvNeXt (Liu 2022, arXiv:2201.03545): 4 × 4 patches, then stages with 2 × 2 patches between."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0])]
    for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if index:
            layers += [ChannelNorm(widths[index - 1]), nn.Conv2d(widths[index - 1], width, 2, 2)]
        layers += [ConvNextBlock(width) for _ in range(depth)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(widths[-1]), nn.Linear(widths[-1], classes)
    )


class Bert(nn.Module):
    """BERT from a configuration, ``(B, T)`` ids → ``(B, classes)`` logits."""

    def __init__(self, vocabulary: int, positions: int, width: int, layers: int, heads: int, classes: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        sizes: dict[str, Any] = {
            "vocab_size": vocabulary,
            "max_position_embeddings": positions,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            "num_labels": classes,
        }
        config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        self.model: nn.Module = BertForSequenceClassification(config)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids).logits
        return logits
