"""Ghost clipping with gradient accumulation: by hand, by BatchMemoryManager, and in one big batch. All are equal."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import BatchMemoryManager, PrivacyEngine

RECORDS = 60


def train(how: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    data = TensorDataset(torch.randn(RECORDS, 10).double(), torch.randint(0, 3, (RECORDS,)))
    engine = PrivacyEngine()
    model, optimizer, loader, criterion = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        # Given generators make batches and noise the same in all three runs. Never do this with real data.
        data_loader=DataLoader(data, batch_size=30, generator=torch.Generator().manual_seed(1)),
        noise_generator=torch.Generator().manual_seed(2),
        noise_multiplier=1.0,
        max_grad_norm=0.5,
        grad_sample_mode="ghost",
        criterion=nn.CrossEntropyLoss(),
    )
    if how == "manager":
        with BatchMemoryManager(data_loader=loader, max_physical_batch_size=8, optimizer=optimizer) as batches:
            for _ in range(3):
                for x, y in batches:  # the loop is the usual one
                    optimizer.zero_grad()
                    criterion(model(x), y).backward()
                    optimizer.step()
    else:
        for _ in range(3):
            for x, y in loader:
                optimizer.zero_grad()
                size = 8 if how == "by hand" else len(x)
                for part_x, part_y in zip(x.split(size), y.split(size), strict=True):
                    criterion(model(part_x), part_y).backward()  # several backwards ...
                optimizer.step()  # ... one release, one noise
    print(f"{how:>13}: {engine.accountant.steps} releases, epsilon {engine.get_epsilon(1e-5):.4f}")
    return [p.detach().clone() for p in model.parameters()]


whole, by_hand, managed = (train(how) for how in ("one big batch", "by hand", "manager"))
for other in (by_hand, managed):
    difference = max(float((a - b).abs().max()) for a, b in zip(whole, other, strict=True))
    print(f"largest difference of a weight after training: {difference:.1e}")
    assert difference < 1e-12
