"""The digits: 1,797 scanned images that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

CLASSES = tuple(str(digit) for digit in range(10))
HELD_OUT = 0.2


@dataclass(frozen=True, slots=True)
class Digits:
    """Training and test part.

    Attributes:
        train_images: ``(N, 1, 8, 8)``, float32, in [0, 1].
        train_labels: ``(N,)``, int64.
        test_images: ``(M, 1, 8, 8)``, float32, in [0, 1].
        test_labels: ``(M,)``, int64.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def train(self) -> TensorDataset:
        return TensorDataset(self.train_images, self.train_labels)

    @property
    def records(self) -> int:
        """How many images are trained on, N."""
        return len(self.train_labels)


def load(seed: int) -> Digits:
    """Load the digits and hold 20 % of each class out, chosen by ``seed``."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    train, test = train_test_split(range(len(labels)), test_size=HELD_OUT, stratify=digits.target, random_state=seed)
    return Digits(images[train], labels[train], images[test], labels[test])
