from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tacit.testing import private_gradients

SIZES = pytest.mark.parametrize(("B", "T", "d"), [(3, 5, 4), (4, 4, 4), (1, 3, 2), (2, 1, 3)])


class Pair(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x, y)


@SIZES
@pytest.mark.parametrize("bias", [True, False])
def test_bilinear(exact: Any, B: int, T: int, d: int, bias: bool) -> None:
    for shape in ((B,), (B, T), (B, T, 2)):
        exact(Pair(nn.Bilinear(d, 3, 5, bias=bias)), torch.randn(*shape, d), torch.randn(*shape, 3))
        exact(Pair(nn.Bilinear(d, d, d, bias=bias)), torch.randn(*shape, d), torch.randn(*shape, d))


def test_bilinear_of_one_input_with_itself_and_with_a_parameter(exact: Any) -> None:
    exact.op(lambda x, w: F.bilinear(x, x, w), torch.randn(4, 4), w=(4, 4, 4))
    exact.op(lambda x, v, w: F.bilinear(x, v.expand_as(x), w), torch.randn(4, 4), v=(4,), w=(3, 4, 4))
    exact.op(lambda x, w: F.bilinear(x, x, w * 2), torch.randn(3, 4), w=(3, 4, 4))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_half(exact: Any, frozen: str) -> None:
    layer = nn.Bilinear(4, 4, 3)
    getattr(layer, frozen).requires_grad_(False)
    exact(Pair(layer), torch.randn(3, 4), torch.randn(3, 4))


@pytest.mark.parametrize("weights", [1, 4])
@pytest.mark.parametrize("shape", [(3, 4), (4, 4), (1, 4), (3, 4, 5), (4, 4, 4, 4)])
def test_prelu(exact: Any, weights: int, shape: tuple[int, ...]) -> None:
    exact(nn.PReLU(weights), torch.randn(shape))
    exact.op(lambda x, w: torch.prelu(x, w * 2) + x.prelu(w), torch.randn(shape), w=(weights,))


def test_prelu_of_single_numbers(exact: Any) -> None:
    exact(nn.PReLU(), torch.randn(5))


def test_prelu_in_one_layout_only(exact: Any) -> None:
    exact(nn.PReLU(), torch.randn(4, 3, 2), batch_first=False)


def test_autocast() -> None:
    torch.manual_seed(0)

    def loss(m: nn.Module, b: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m(*b).float().square().mean()

    model, batch = Pair(nn.Bilinear(4, 3, 5)), (torch.randn(3, 6, 4), torch.randn(3, 6, 3))
    norms, _ = private_gradients(model, loss, batch, max_grad_norm=1.0)
    exactly, _ = private_gradients(model, lambda m, b: m(*b).square().mean(), batch, max_grad_norm=1.0)
    torch.testing.assert_close(norms, exactly, rtol=0.05, atol=0.0)
