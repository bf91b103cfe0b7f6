"""How much noise is added, under a summed and under a mean loss.

The noise has the standard deviation sigma * C on the sum of clipped gradients. With loss_reduction="mean" the noisy
sum is divided by the expected batch size, so that what the optimizer sees carries sigma * C / E[batch]. Epsilon
depends on sigma alone, and is the same in both.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.accounting import epsilon

SIGMA, C, RECORDS, STEPS = 1.5, 0.4, 50, 20


def released_noise(reduction: str) -> tuple[float, float, float]:
    torch.manual_seed(0)
    model = nn.Linear(100, 40)
    data = TensorDataset(torch.zeros(RECORDS, 100))
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(data, batch_size=20),  # 3 batches an epoch: 50/3 records expected in each
        noise_multiplier=SIGMA,
        max_grad_norm=C,
        loss_reduction=reduction,
    )
    moves: list[torch.Tensor] = []
    while len(moves) < STEPS:
        for (x,) in loader:
            optimizer.zero_grad()
            before = model.weight.detach().clone()
            outputs = model(x) * 0.0  # no signal: what moves the weights is noise alone
            (outputs.mean() if reduction == "mean" else outputs.sum()).backward()
            optimizer.step()
            moves.append(model.weight.detach() - before)
    expected_batch = engine.plan.sampling.expected_batch_size
    return float(torch.stack(moves).std()), expected_batch, engine.get_epsilon(1e-5)


by_sum, _, epsilon_sum = released_noise("sum")
by_mean, expected_batch, epsilon_mean = released_noise("mean")
print(f"sum : measured {by_sum:.4f}, sigma * C            = {SIGMA * C:.4f}")
print(f"mean: measured {by_mean:.4f}, sigma * C / E[batch] = {SIGMA * C / expected_batch:.4f}")
stated = epsilon(noise_multiplier=SIGMA, sample_rate=1 / 3, steps=21, delta=1e-5)
print(f"epsilon after 21 steps: {epsilon_sum:.4f} and {epsilon_mean:.4f}; from sigma = {SIGMA}: {stated:.4f}")
# 84,000 draws: their deviation is within 2 % of the truth but once in 1e15.
assert abs(by_sum / (SIGMA * C) - 1) < 0.02
assert abs(by_mean / (SIGMA * C / expected_batch) - 1) < 0.02
assert epsilon_sum == epsilon_mean == stated
