"""The network of the demo and how it is trained, with and without privacy."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Adam, Optimizer

CHANNELS = 16
GROUPS = 4
LEARNING_RATE = 0.005


def build_network(seed: int) -> nn.Sequential:
    """A convolutional network of 10,000 weights: ``(B, 1, 8, 8)`` to logits ``(B, 10)``.

    GroupNorm, not BatchNorm: it normalises each image by itself, so no image moves another's gradient.

    Args:
        seed: of the initial weights; torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, CHANNELS, 3, padding=1),
            nn.GroupNorm(GROUPS, CHANNELS),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1),
            nn.GroupNorm(GROUPS, 2 * CHANNELS),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * CHANNELS * 16, 10),
        )


def build_optimizer(network: nn.Module) -> Optimizer:
    """Adam, the same for both runs."""
    return Adam(network.parameters(), lr=LEARNING_RATE)
