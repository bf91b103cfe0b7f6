"""The benchmarked models, in modules that every contestant supports."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(inputs: int, hidden: Sequence[int], classes: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def convnet(widths: Sequence[int], groups: int, classes: int) -> nn.Module:
    """3 × 3 convolutions on RGB images, each with GroupNorm and ReLU; pooling after every second one."""
    layers: list[nn.Module] = []
    before = 3
    for index, width in enumerate(widths):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(groups, width), nn.ReLU()]
        if index % 2 == 1:
            layers.append(nn.MaxPool2d(2))
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and feed-forward, without ``nn.MultiheadAttention``: not all contestants support it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attend(self, x: Tensor) -> Tensor:
        query, key, value = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in self.projections)
        mixed: Tensor = self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.attention_norm(x))
        fed: Tensor = self.feed(self.feed_norm(x))
        return x + fed


class Encoder(nn.Module):
    """Transformer encoder over ``(B, T)`` token ids, averaged over positions and classified."""

    def __init__(self, vocabulary: int, positions: int, width: int, layers: int, heads: int, classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        # One row of positions per sample, in memory: Opacus takes the first dimension of every input for the batch,
        # and its ghost mode views ids.
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids).contiguous()
        x = self.blocks(self.tokens(ids) + self.positions(places))
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class TextClassifier(nn.Module):
    """A recurrent classifier of ``(B, T)`` token ids, from the last hidden state."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, embedding)
        self.recurrent = nn.LSTM(embedding, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.recurrent(self.tokens(ids))
        logits: Tensor = self.head(states[:, -1])
        return logits


class BagOfWords(nn.Module):
    """The mean of ``(B, T)`` embedded token ids, and a linear layer."""

    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.tokens(ids).mean(1))
        return logits


class LanguageModel(nn.Module):
    """GPT-2 from a configuration, ``(B, T)`` ids → ``(B, T, V)`` logits; with LoRA on its attention if ``rank`` > 0."""

    def __init__(self, vocabulary: int, positions: int, width: int, layers: int, heads: int, rank: int) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = {
            "vocab_size": vocabulary,
            "n_positions": positions,
            "n_embd": width,
            "n_layer": layers,
            "n_head": heads,
        }
        unused = {"bos_token_id": None, "eos_token_id": None, "use_cache": False}
        config = GPT2Config(**sizes, **unused, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
        self.model: nn.Module = GPT2LMHeadModel(config)
        if rank:
            from peft import LoraConfig, get_peft_model

            lora = LoraConfig(r=rank, target_modules=["c_attn"], fan_in_fan_out=True)
            with warnings.catch_warnings():  # peft asks transformers for what will have another name
                warnings.simplefilter("ignore")
                self.model = get_peft_model(self.model, lora)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids).logits
        return logits


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with GroupNorm around a shortcut."""

    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        stride = 1 if before == width else 2
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.first_norm = nn.GroupNorm(groups, width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.second_norm = nn.GroupNorm(groups, width)
        self.short = nn.Identity() if stride == 1 else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.short(x))


def resnet(widths: Sequence[int], blocks: int, groups: int, classes: int) -> nn.Module:
    """The shape of CIFAR's ResNet-20, with GroupNorm."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, widths[0], 3, padding=1, bias=False),
        nn.GroupNorm(groups, widths[0]),
        nn.ReLU(),
    ]
    before = widths[0]
    for width in widths:
        for _ in range(blocks):
            layers.append(ResidualBlock(before, width, groups))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
