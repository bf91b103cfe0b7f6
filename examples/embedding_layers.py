"""A model with embedding layers: words, positions, and an output layer that shares the words' table."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.testing import check_exactness

WORDS, LENGTH, WIDTH = 30, 8, 16


class NextWord(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.positions(torch.arange(ids.shape[1]))
        x = self.norm(x + torch.relu(self.mix(x)))
        return F.linear(x, self.words.weight)  # tied: the table is used twice


def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    ids, following = batch
    return F.cross_entropy(model(ids).transpose(1, 2), following)


torch.manual_seed(0)
model = NextWord()
ids = torch.randint(1, WORDS, (256, LENGTH))
following = (ids * 7 + 3) % WORDS

# Anyone can check that the engine clips exactly what it should, on their own model:
report = check_exactness(model.double(), loss_fn, (ids[:6], following[:6]))
print(f"against a loop over single samples: norms {report.norm_error:.0e}, clipped sum {report.sum_error:.0e}")

model = model.float()
engine = PrivacyEngine()
model, optimizer, loader = engine.make_private(
    module=model,
    optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
    data_loader=DataLoader(TensorDataset(ids, following), batch_size=64),
    noise_multiplier=0.8,
    max_grad_norm=1.0,
)
for epoch in range(5):
    for batch in loader:
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}, epsilon {engine.get_epsilon(1e-5):.3f}")
assert report.sum_error < 1e-9
