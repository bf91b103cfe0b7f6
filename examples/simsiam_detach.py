"""SimSiam: one encoder called on two views, with .detach() on one branch of each term.

Nothing special is needed. Detached paths record nothing, the two calls of the encoder are joined before the norm, and
a sample's two views count as one sample.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.testing import check_exactness


class SimSiam(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(20, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 16))
        self.predictor = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16))

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z1, z2 = self.encoder(first), self.encoder(second)
        return self.predictor(z1), self.predictor(z2), z1.detach(), z2.detach()


def loss_fn(model: nn.Module, views: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    p1, p2, z1, z2 = model(*views)
    return -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2


torch.manual_seed(0)
x = torch.randn(400, 20)
model = SimSiam()
report = check_exactness(model.double(), loss_fn, (x[:6].double(), x[:6].double() * 1.1))
print(f"against a loop over single samples: norms {report.norm_error:.0e}, clipped sum {report.sum_error:.0e}")
model = model.float()

engine = PrivacyEngine()
model, optimizer, loader = engine.make_private(
    module=model,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    data_loader=DataLoader(TensorDataset(x), batch_size=50),
    noise_multiplier=0.7,
    max_grad_norm=0.1,
)
for epoch in range(4):
    total = 0.0
    for (clean,) in loader:
        views = clean + 0.1 * torch.randn_like(clean), clean + 0.1 * torch.randn_like(clean)
        optimizer.zero_grad()
        loss = loss_fn(model, views)
        loss.backward()
        optimizer.step()
        total += loss.item() / len(loader)
    print(f"epoch {epoch}: loss {total:.3f}, epsilon {engine.get_epsilon(1e-5):.3f}")
assert report.sum_error < 1e-9
