"""Four augmented views of each picture, clipped together: the picture is the unit of privacy, not the view."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine

VIEWS = 4


def views_of(records: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Shift each picture by one pixel four ways; say which picture each row comes from."""
    shifts = [(0, 0), (0, 1), (1, 0), (1, 1)]
    rows = [x.roll(shift, (0, 1)) for x, _ in records for shift in shifts]
    return {
        "x": torch.stack(rows),
        "y": torch.stack([y for _, y in records for _ in shifts]),
        "picture": torch.arange(len(records)).repeat_interleave(VIEWS),
    }


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    engine = PrivacyEngine()
    private, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=2.0),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=256, collate_fn=views_of),
        target_epsilon=3.0,
        target_delta=1e-4,
        epochs=5,
        max_grad_norm=1.0,
        sample_index="picture",
    )
    for _ in range(5):
        for batch in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(private(batch["x"]), batch["y"]).backward()
            optimizer.step()
    assert engine.stats is not None
    print(engine.first_step.text if engine.first_step else "")
    print(f"{len(batch['x'])} rows of the last batch were clipped as {engine.stats.samples} pictures")
    accuracy = (model.eval()(x).argmax(1) == y).float().mean()
    print(f"training accuracy {accuracy:.2f} at epsilon {engine.get_epsilon(1e-4):.3f}")


if __name__ == "__main__":
    main()
