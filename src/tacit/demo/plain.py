"""The same network, trained in the same way without privacy, for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tacit.demo.data import Digits
from tacit.demo.evaluation import accuracy
from tacit.demo.network import build_network, build_optimizer
from tacit.demo.options import DemoOptions
from tacit.demo.progress import TrainingProgress

READ_EVERY = 2


@dataclass(frozen=True, slots=True)
class PlainResult:
    """Test accuracy along the run: ``accuracies[i]`` after ``steps[i]`` steps."""

    steps: tuple[int, ...]
    accuracies: tuple[float, ...]


def train_plain(options: DemoOptions, digits: Digits, progress: TrainingProgress) -> PlainResult:
    """Train without privacy; the result depends on ``options.seed`` alone."""
    network = build_network(options.seed)
    optimizer = build_optimizer(network)
    order = torch.Generator().manual_seed(options.seed)
    loader = DataLoader(digits.train, batch_size=options.batch_size, shuffle=True, generator=order)
    total = options.epochs * len(loader)
    advance = progress.bar("without privacy", total)
    step, readings, latest = 0, [], 0.0
    for _ in range(options.epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            step += 1
            if step % READ_EVERY == 0 or step in (1, total):
                latest = accuracy(network, digits)
                readings.append((step, latest))
            advance(step, loss.item(), latest, None)
    steps, accuracies = zip(*readings, strict=True)
    return PlainResult(steps, accuracies)
