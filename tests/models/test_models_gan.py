"""A private critic, and a generator that is trained through it."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine


@pytest.mark.parametrize("mode", ["auto", "hooks"])
@pytest.mark.parametrize("penalized", [True, False], ids=["two losses", "one loss"])
def test_critic_and_generator(mode: str, penalized: bool) -> None:
    """The critic's sum is that of the loop; the generator's step leaves no trace in the critic."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.2, inplace=True), nn.Linear(6, 1)).double()
    generator = nn.Linear(3, 4).double()
    real, noise = torch.randn(5, 4).double(), torch.randn(5, 3).double()
    fake = generator(noise).detach()
    expected = [torch.zeros_like(p) for p in critic.parameters()]
    for i in range(5):
        critic.zero_grad()
        (critic(fake[i : i + 1]) - critic(real[i : i + 1])).mean().backward()
        norm = torch.cat([p.grad.flatten() for p in critic.parameters()]).norm()
        for total, p in zip(expected, critic.parameters(), strict=True):
            total += p.grad * min(1.0, 0.5 / float(norm))
    critic.zero_grad()
    engine = PrivacyEngine()
    private, optimizer, loader = engine.make_private(
        module=critic,
        optimizer=torch.optim.SGD(critic.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(real), batch_size=5),
        noise_multiplier=0.0,
        max_grad_norm=0.5,
        grad_sample_mode=mode,
    )
    plain = torch.optim.SGD(generator.parameters(), lr=0.1)
    next(iter(loader))
    optimizer.zero_grad()
    with engine.synthetic():
        on_fake = private(fake)
    if penalized:
        (private(real).neg().mean() + on_fake.mean()).backward()
    else:
        (on_fake - private(real)).mean().backward()
    for p, total in zip(private.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, total, rtol=1e-9, atol=1e-12)
    optimizer.step()
    released = [p.grad.clone() for p in private.parameters()]
    plain.zero_grad()
    with engine.synthetic():
        loss = private(generator(noise)).neg().mean()
    loss.backward(inputs=list(generator.parameters()))
    plain.step()
    assert all(p.grad is not None and bool(p.grad.any()) for p in generator.parameters())
    assert all(torch.equal(p.grad, before) for p, before in zip(private.parameters(), released, strict=True))
