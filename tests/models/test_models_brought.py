"""Models that people bring, beyond what tests/benchmarks/test_zoo.py holds of them."""

from typing import Any

import pytest
import torch
from benchmarks.zoo.brought import evidence, with_penalty
from benchmarks.zoo.networks import Vae, critic
from tests.modes import mode_settings
from torch import Tensor, nn

from tacit.errors import NoRuleError
from tacit.testing import private_gradients


@pytest.mark.parametrize("B", [1, 3, 4])
def test_noise_inside_the_forward(exact: Any, B: int) -> None:
    x = torch.randn(B, 4, dtype=exact.dtype)
    norms, _ = private_gradients(Vae().to(exact.dtype), evidence, (x,), max_grad_norm=1.0, **mode_settings(exact.mode))
    assert torch.isfinite(norms).all()
    assert float(norms.min()) > 0


def test_a_gradient_penalty_through_the_private_critic_is_refused() -> None:
    with pytest.raises(NoRuleError, match=r"create_graph=True.*gradient penalties"):
        private_gradients(critic(), with_penalty, tuple(torch.randn(2, 3, 4)), max_grad_norm=1.0)


def test_a_penalty_beside_samples_that_want_a_gradient(exact: Any) -> None:
    """Inputs that want a gradient, as for a penalty, change nothing for the parameters."""

    def loss(m: nn.Module, b: Any) -> Tensor:
        return m(b).square().mean()

    exact.loss(critic().to(exact.dtype), loss, torch.randn(3, 4, dtype=exact.dtype, requires_grad=True))
