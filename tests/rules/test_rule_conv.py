from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tacit.errors import PrivacyError
from tacit.rules import conv as rules
from tacit.rules.conv import weight_use
from tacit.uses import (
    TUNER,
    Dense,
    Geometry,
    Layout,
    Outer,
    Patches,
    Room,
    gradients_by_patches,
    row_gradients,
    unfold,
)

# torch warns once, from the reference loop.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths:UserWarning")

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SPATIAL = {1: (7,), 2: (6, 5), 3: (4, 3, 5)}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "no-bias": {"kernel_size": 2, "bias": False},
    "pointwise": {"kernel_size": 1},
    "pointwise-strided": {"kernel_size": 1, "stride": 2},
    "padding": {"kernel_size": 3, "padding": 1},
    "wide-padding": {"kernel_size": 2, "padding": 2},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilation": {"kernel_size": 2, "dilation": 2},
    "dilated-same": {"kernel_size": 2, "dilation": 3, "padding": "same"},
    "same-odd-kernel": {"kernel_size": 3, "padding": "same"},
    "same-even-kernel": {"kernel_size": 2, "padding": "same"},
    "valid": {"kernel_size": 3, "padding": "valid", "stride": 2},
    "groups": {"kernel_size": 3, "groups": 2},
    "depthwise": {"kernel_size": 3, "groups": 4, "padding": 1},
    "groups-dilated": {"kernel_size": 2, "groups": 2, "dilation": 2, "stride": 2, "padding": "valid"},
    "groups-same-even": {"kernel_size": 2, "groups": 4, "padding": "same"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "circular-same": {"kernel_size": 2, "padding": "same", "padding_mode": "circular"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "stride": 2},
    "leftover": {"kernel_size": 3, "stride": 3},
}


@pytest.fixture(params=["unfolded", "grouped", "pixels"])
def strategy(request: pytest.FixtureRequest) -> Iterator[str]:
    """Force each of the strategies where it is possible."""
    with TUNER.forced(request.param):
        yield request.param


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_convolutions(exact: Any, strategy: str, name: str, dims: int) -> None:
    exact(CONV[dims](4, 4, **OPTIONS[name]), torch.randn(3, 4, *SPATIAL[dims]))


@pytest.mark.parametrize("name", ["plain", "groups", "same-even-kernel", "dilation"])
def test_convolutions_in_lower_precision(exact_any: Any, strategy: str, name: str) -> None:
    exact_any(nn.Conv2d(4, 6, **OPTIONS[name]), torch.randn(3, 4, 5, 5))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", ["padding", "depthwise", "same-even-kernel"])
def test_sizes_that_coincide(exact: Any, strategy: str, name: str, dims: int) -> None:
    exact(CONV[dims](4, 4, **OPTIONS[name]), torch.randn(*[4] * (dims + 2)))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 1)},
        {"kernel_size": (1, 3), "padding": (0, 1)},
        {"kernel_size": (1, 4), "padding": "same"},
        {"kernel_size": (2, 3), "padding": "same"},
        {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)},
    ],
    ids=str,
)
def test_options_that_differ_by_dimension(exact: Any, strategy: str, options: dict[str, Any]) -> None:
    exact(nn.Conv2d(4, 2, **options), torch.randn(3, 4, 6, 5))
    exact(nn.Conv2d(4, 2, groups=2, **options), torch.randn(3, 4, 6, 5))


@pytest.mark.parametrize("size", [4, 18])
@pytest.mark.parametrize("channels", [2, 9])
def test_small_and_large_images_choose_for_themselves(exact_any: Any, size: int, channels: int) -> None:
    exact_any(nn.Conv2d(channels, 3, 3, padding=1), torch.randn(3, channels, size, size))


@pytest.mark.parametrize(("name", "kind"), [("grouped", Dense), ("unfolded", (Dense, Outer)), ("pixels", Patches)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
def test_every_form_is_the_same_use(name: str, kind: Any, padding: tuple[int, int]) -> None:
    torch.manual_seed(0)
    geometry = Geometry((1, 1), padding, (1, 1), 1)
    x = torch.randn(4, 5, 7, 6)
    w = torch.randn(3, 5, 3, 2)
    g = torch.randn(F.conv2d(x, w, padding=padding).shape)
    with TUNER.forced(name):
        use = weight_use(x, g, w, geometry, Layout(4, 0), Room())
    assert isinstance(use, kind)
    a = unfold(x, (3, 2), geometry)
    expected = torch.einsum("btp,btd->bpd", g.flatten(2).transpose(1, 2), a).view(4, *w.shape)
    torch.testing.assert_close(use.dense(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(use.squared_norms(), expected.double().square().sum((1, 2, 3, 4)), rtol=1e-5, atol=0)
    factors = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    total = torch.tensordot(factors.float(), expected, 1)
    for limit in (1e9, 1e-9):  # with the smaller one every sample is summed apart
        torch.testing.assert_close(use.weighted_sum(factors, limit), total, rtol=1e-4, atol=1e-4)
    dropped = torch.tensor([False, True, False, False])
    assert float(use.without(dropped).squared_norms()[1]) == 0
    torch.testing.assert_close(use.reshaped(torch.Size((15, 6))).dense(), expected.view(4, 15, 6), rtol=1e-4, atol=1e-4)


def test_patches_that_cancel_are_squared_without_cancellation() -> None:
    """The patches' terms are 1e8 times their sum."""
    x = torch.ones(1, 1, 4, 4)
    g = torch.ones(1, 1, 4, 4)
    g[..., ::2] = -1
    g *= 1e4
    g[0, 0, 0, 0] += 1e-3
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
    use = Patches(x, g, torch.Size((1, 1, 1, 1)), geometry)
    torch.testing.assert_close(use.squared_norms(), g.double().sum().square().reshape(1), rtol=1e-6, atol=0)


@pytest.mark.choice
def test_forms_that_need_much_memory_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole gradients are small here, Gram matrices of the pixels are not."""
    monkeypatch.setattr(rules, "MOST_BYTES", 1000)
    monkeypatch.setattr(TUNER, "found", {})
    rules._planned.cache_clear()
    x, w = torch.randn(2, 3, 12, 12), torch.randn(2, 3, 3, 3)
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1)
    assert isinstance(weight_use(x, torch.randn(2, 2, 12, 12), w, geometry, Layout(2, 0), Room()), Dense)
    rules._planned.cache_clear()
    assert all("pixels" not in times for times in TUNER.found.values())


@pytest.mark.choice
def test_similar_batches_share_a_choice() -> None:
    tried = len(TUNER.found)
    layer = [torch.randn(5, 11, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 1)]
    for batch in (33, 40, 63):
        x, g = torch.randn(batch, 11, 5, 5), torch.randn(batch, 5, 5, 5)
        weight_use(x, g, *layer, Layout(batch, 0), Room())
    assert len(TUNER.found) == tried + 1


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", [(1, 0, 1), (2, 1, 2), (3, 2, 1)])
@pytest.mark.parametrize("block", [1, 400, 2**20])
def test_gradients_by_patches_of_a_few_rows_at_a_time(
    dims: int, options: tuple[int, int, int], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tacit.uses.patches.BLOCK", block)
    torch.manual_seed(0)
    shape = torch.Size((4, 3, *(3, 2, 2)[:dims]))
    x = torch.randn(5, 3, *(7, 6, 5)[:dims], dtype=torch.float64)
    geometry = Geometry(*((each,) * dims for each in options), 1)
    y = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims](x, torch.randn(shape, dtype=x.dtype), None, *options)
    g = torch.randn_like(y)
    found = gradients_by_patches(x, g, shape, geometry)
    torch.testing.assert_close(found, row_gradients(x, g, shape, geometry), rtol=1e-12, atol=1e-12)
    low = gradients_by_patches(x.bfloat16(), g.bfloat16(), shape, geometry)
    assert low.dtype == torch.float32  # from products in float32
    expected = row_gradients(x.bfloat16().double(), g.bfloat16().double(), shape, geometry).float()
    torch.testing.assert_close(low, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_unfold_equals_torch(dims: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 3, *[6] * dims), torch.randn(4, 3, *[2] * dims)
    geometry = Geometry((2,) * dims, (1,) * dims, (2,) * dims, 1)
    y = (unfold(x, w.shape[2:], geometry) @ w.flatten(1).t()).transpose(1, 2)
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    torch.testing.assert_close(y, function(x, w, None, 2, 1, 2).flatten(2))


@pytest.mark.parametrize("groups", [1, 4])
def test_channels_last(exact_any: Any, strategy: str, groups: int) -> None:
    x = torch.randn(3, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    layer = nn.Conv2d(4, 4, 3, groups=groups).to(memory_format=torch.channels_last)
    exact_any(layer, x)
    exact_any(layer, x, scaled=False)


def test_inputs_that_are_expanded_or_strided(exact: Any, strategy: str) -> None:
    exact.op(lambda x, w: F.conv2d(x[:, :1].expand(-1, 4, -1, -1), w), torch.randn(3, 2, 5, 5), w=(2, 4, 3, 3))
    exact.op(lambda x, w: F.conv2d(x[..., ::2, :], w), torch.randn(3, 4, 7, 5), w=(2, 4, 3, 3))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_half(exact: Any, strategy: str, frozen: str) -> None:
    layer = nn.Conv1d(4, 4, 3)
    getattr(layer, frozen).requires_grad_(False)
    exact(layer, torch.randn(4, 4, 6))


@pytest.mark.parametrize(("B", "T"), [(3, 5), (4, 4)])
def test_frames_folded_into_the_batch(exact: Any, strategy: str, B: int, T: int) -> None:
    """Video: (B, T, C, H, W) through a 2-d convolution as (B·T, C, H, W), and as (T·B, C, H, W)."""
    exact.op(lambda x, w, b: F.conv2d(x.flatten(0, 1), w, b).unflatten(0, (B, T) if len(x) == B else (1, T)),
             torch.randn(B, T, 2, 4, 4), w=(2, 2, 3, 3), b=(2,))  # fmt: skip
    exact.op(
        lambda x, w, b: F.conv2d(x.transpose(0, 1).flatten(0, 1), w, b).unflatten(0, (T, -1)).transpose(0, 1),
        torch.randn(B, T, 2, 4, 4),
        w=(2, 2, 3, 3),
        b=(2,),
    )


def test_one_convolution_used_twice(exact: Any, strategy: str) -> None:
    exact.op(lambda x, w: F.conv1d(F.conv1d(x, w, padding=1).tanh(), w), torch.randn(4, 4, 6), w=(4, 4, 3))


def test_positional_arguments(exact: Any) -> None:
    exact.op(lambda x, w, b: F.conv2d(x, w, b, (2, 1), (1, 0), 1, 2), torch.randn(3, 4, 5, 5), w=(2, 2, 3, 3), b=(2,))
    exact.op(lambda x, w: torch.conv2d(x, w, None, [2], [1]), torch.randn(3, 4, 5, 5), w=(2, 4, 3, 3))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("samples", [1, 5])
def test_one_position_of_an_input_with_channels_last(exact: Any, strategy: str, groups: int, samples: int) -> None:
    """A transposed (B, 1, C): torch tells the order of its dimensions by the strides of sizes that are 1."""
    exact.op(
        lambda x, w: torch.conv1d(x.transpose(1, 2), w, padding=1, groups=groups),
        torch.randn(samples, 1, 4),
        w=(4, 4 // groups, 3),
    )


def test_a_patch_embedding(exact_any: Any) -> None:
    exact_any.op(
        lambda x, w, b: F.conv2d(x, w, b, stride=4).flatten(2).transpose(1, 2),
        torch.randn(4, 3, 8, 8),
        w=(4, 3, 4, 4),
        b=(4,),
    )


def test_one_image_without_a_batch_dimension_is_refused(exact_auto: Any) -> None:
    with pytest.raises(PrivacyError, match="without a batch dimension|mixes"):
        exact_auto.private(lambda x, w: F.conv1d(x, w), torch.randn(4, 6), w=(4, 4, 3))


def test_a_kernel_from_the_batch_is_refused(exact_auto: Any) -> None:
    with pytest.raises(PrivacyError, match="come from the batch"):
        exact_auto.private(lambda x, w: F.conv1d(x, x, w), torch.randn(4, 4, 4), w=(4,))
