from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tacit.testing import private_gradients

LAYERS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "doubling": {"kernel_size": 2, "stride": 2},
    "padded": {"kernel_size": 3, "padding": 1},
    "output padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "output padding over the stride": {"kernel_size": 2, "dilation": 3, "padding": 1, "output_padding": 2},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2, "bias": False},
    "strided past the kernel": {"kernel_size": 1, "stride": 3, "output_padding": 2},
    "groups": {"kernel_size": 3, "stride": 2, "groups": 2},
    "depthwise": {"kernel_size": 3, "groups": 4},
}


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("B", "size"), [(3, 5), (4, 4), (1, 3)])
def test_settings(exact: Any, dims: int, name: str, B: int, size: int) -> None:
    exact(LAYERS[dims](4, 4, **SETTINGS[name]), torch.randn(B, 4, *[size] * dims))


@pytest.mark.parametrize("name", ["doubling", "output padding", "groups"])
def test_three_dimensions(exact: Any, name: str) -> None:
    exact(nn.ConvTranspose3d(4, 2, **SETTINGS[name]), torch.randn(2, 4, 2, 3, 2))


def test_settings_that_differ_by_dimension(exact_any: Any) -> None:
    layer = nn.ConvTranspose2d(3, 5, (2, 3), stride=(2, 1), padding=(0, 1), output_padding=(1, 0), dilation=(1, 2))
    exact_any(layer, torch.randn(4, 3, 3, 4))


def test_large_enough_for_grouped_convolutions(exact: Any) -> None:
    exact(nn.ConvTranspose2d(8, 8, 3), torch.randn(2, 8, 17, 17))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_half(exact: Any, frozen: str) -> None:
    layer = nn.ConvTranspose1d(4, 3, 3, stride=2)
    getattr(layer, frozen).requires_grad_(False)
    exact(layer, torch.randn(3, 4, 5))
    exact(layer, torch.randn(3, 4, 5), scaled=False)


def test_a_strided_input_and_a_layer_used_twice(exact: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(4, 4, 2, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.up(x.transpose(1, 2)).relu_())

    exact(Net(), torch.randn(3, 4, 4))


def test_autocast() -> None:
    torch.manual_seed(0)

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m(x).float().square().mean()

    model, x = nn.ConvTranspose2d(4, 4, 3, stride=2), torch.randn(3, 4, 5, 5)
    norms, _ = private_gradients(model, loss, x, max_grad_norm=1.0)
    exactly, _ = private_gradients(model, lambda m, x: m(x).square().mean(), x, max_grad_norm=1.0)
    torch.testing.assert_close(norms, exactly, rtol=0.05, atol=0.0)
