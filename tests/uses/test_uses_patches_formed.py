"""A convolution's use whose whole gradients are formed for the norm alone, a few samples at a time."""

import pytest
import torch
import torch.nn.functional as F

from tacit.uses import Geometry, Patches

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

# channels, outputs, sizes, kernel, stride, padding, dilation, groups: sizes that coincide, and that all differ
CASES = [
    (3, 3, (3, 3), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 5, (7, 6), (3, 2), (2, 1), (1, 0), (1, 2), 1),
    (4, 6, (5, 7), (2, 3), (1, 2), (0, 1), (2, 1), 2),
    (2, 3, (9,), (4,), (2,), (1,), (1,), 1),
    (2, 3, (4, 3, 5), (2, 1, 3), (1, 1, 2), (0, 0, 1), (1, 1, 1), 1),
]


def made(case, samples, dtype=torch.float64):
    channels, outputs, sizes, kernel, stride, padding, dilation, groups = case
    torch.manual_seed(0)
    geometry = Geometry(stride, padding, dilation, groups)
    x = torch.randn(samples, channels, *sizes, dtype=dtype)
    weight = torch.randn(outputs, channels // groups, *kernel, dtype=dtype)
    y = CONVOLUTIONS[len(sizes)](x, weight, None, stride, padding, dilation, groups)
    return x, torch.randn_like(y), weight, geometry


def loop(x, g, weight, geometry):
    """Each sample's gradient alone."""
    weight = weight.clone().requires_grad_()
    gradients = []
    for row, out in zip(x, g, strict=True):
        function = CONVOLUTIONS[x.dim() - 2]
        y = function(row[None], weight, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
        gradients += torch.autograd.grad(y, weight, out[None])
    return torch.stack(gradients)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["grouped", "unfolded"])
@pytest.mark.parametrize("at_once", [1, 2**20])
def test_norms_and_sums_are_those_of_a_loop(monkeypatch, case, way, at_once):
    if way == "unfolded" and case[-1] > 1:
        pytest.skip("patches are of convolutions without groups")
    monkeypatch.setattr("tacit.uses.formed.BLOCK", at_once)
    x, g, weight, geometry = made(case, 3)
    use, single = Patches(x, g, weight.shape, geometry, way=way), loop(x, g, weight, geometry)
    torch.testing.assert_close(use.squared_norms(), single.flatten(1).square().sum(1), rtol=1e-12, atol=0)
    factors = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(use.weighted_sum(factors, 1e3), torch.tensordot(factors, single, 1))
    dropped = torch.tensor([False, True, False])
    assert use.without(dropped).squared_norms()[1] == 0


@pytest.mark.parametrize("way", ["grouped", "unfolded"])
def test_norms_of_what_cancels_are_computed_again(way):
    """Two halves of an image whose gradients are opposite but for a part of 1e-6."""
    half, out = torch.randn(2, 3, 4, 8), torch.randn(2, 4, 4, 8)
    x, g = torch.cat([half, half], 2), torch.cat([out, -out * (1 + 1e-6)], 2)
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
    shape = torch.Size((4, 3, 1, 1))
    exact = torch.einsum("bphw,bchw->bpc", g.double(), x.double()).flatten(1).square().sum(1)
    found = Patches(x, g, shape, geometry, way=way).squared_norms()
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-25, 1e22])
def test_norms_beyond_the_range_of_float32_are_computed_again(scale):
    x, g, weight, geometry = made(CASES[0], 2, torch.float32)
    single = loop(x.double() * scale, g.double(), weight.double(), geometry)
    found = Patches(x * scale, g, weight.shape, geometry, way="grouped").squared_norms()
    torch.testing.assert_close(found, single.flatten(1).square().sum(1), rtol=1e-5, atol=0)
