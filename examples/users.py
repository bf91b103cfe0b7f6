"""Users as the unit of privacy: each has several records, of which a batch has at most three, clipped as one."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.sampling import UserPoissonSampling


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
    y = torch.tensor(digits.target)
    writers = torch.arange(len(x)) // 4  # four pictures by each writer
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    loader = DataLoader(TensorDataset(x, y), batch_size=256)
    engine = PrivacyEngine()
    private, optimizer, private_loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=2.0),
        data_loader=loader,
        sampling=UserPoissonSampling.from_loader(loader, users=writers, most=3),
        target_epsilon=4.0,
        target_delta=1e-4,
        epochs=10,
        max_grad_norm=1.0,
    )
    for _ in range(10):
        for images, labels in private_loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(private(images), labels).backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == y).float().mean().item()
    print(f"accuracy {accuracy:.3f}")
    print(engine.statement(1e-4).text)


if __name__ == "__main__":
    main()
