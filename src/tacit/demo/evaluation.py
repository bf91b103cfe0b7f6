"""How well a network reads the digits that were held out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tacit.demo.data import CLASSES, Digits


def predict(network: nn.Module, digits: Digits) -> Tensor:
    """Predicted class of each test image, ``(M,)``; the network is left in training mode or not, as it was."""
    training = network.training
    network.eval()
    with torch.no_grad():
        predicted: Tensor = network(digits.test_images).argmax(dim=1)
    network.train(training)
    return predicted


def accuracy(network: nn.Module, digits: Digits) -> float:
    """Fraction of test images that are read right."""
    return float((predict(network, digits) == digits.test_labels).double().mean())


def confusion_matrix(network: nn.Module, digits: Digits) -> tuple[tuple[int, ...], ...]:
    """Number of test images by true class (row) and predicted class (column)."""
    size = len(CLASSES)
    cells = digits.test_labels * size + predict(network, digits)
    counts = torch.bincount(cells, minlength=size * size).view(size, size)
    return tuple(tuple(row) for row in counts.tolist())
