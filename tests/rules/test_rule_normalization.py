from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tacit.errors import MixingError, PrivacyError

SIZES = pytest.mark.parametrize(("B", "T", "d"), [(3, 5, 6), (4, 4, 4), (1, 3, 4), (3, 1, 4)])


@SIZES
@pytest.mark.parametrize("options", [{}, {"bias": False}], ids=["affine", "no-bias"])
@pytest.mark.parametrize("last", [1, 2])
def test_layer_norm(exact_any: Any, B: int, T: int, d: int, options: dict[str, Any], last: int) -> None:
    exact_any(nn.LayerNorm((T, d)[2 - last :], **options), torch.randn(B, T, d))


def test_layer_norm_on_other_ranks(exact: Any) -> None:
    exact(nn.LayerNorm(4), torch.randn(4, 4))
    exact(nn.LayerNorm(4), torch.randn(4, 4, 4, 4))
    exact(nn.LayerNorm([4, 4, 4]), torch.randn(4, 4, 4, 4))


def test_layer_norm_without_parameters_or_with_one_frozen(exact: Any) -> None:
    exact(nn.LayerNorm(4, elementwise_affine=False), torch.randn(4, 4, 4))
    for frozen in ("weight", "bias"):
        layer = nn.LayerNorm(4)
        getattr(layer, frozen).requires_grad_(False)
        exact(layer, torch.randn(4, 4, 4))


def test_layer_norm_with_a_bias_alone_and_by_position(exact: Any) -> None:
    exact.op(lambda x, b: F.layer_norm(x, (4,), None, b), torch.randn(4, 4, 4), b=(4,))
    exact.op(lambda x, w, b: torch.layer_norm(x, [4], w, b, 1e-3, False), torch.randn(4, 4, 4), w=(4,), b=(4,))


def test_layer_norm_in_two_precisions(exact_auto: Any) -> None:
    """Input and weight of different types go by way of multiplication."""

    def mixed(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (4,)) * w.double() + F.layer_norm(x.float(), (4,), w.float()).double() * 0

    exact_auto.op(mixed, torch.randn(4, 4, 4), w=(4,))


def test_layer_norm_with_the_batch_in_dimension_one(exact: Any) -> None:
    exact(nn.LayerNorm(4), torch.randn(4, 4, 4), batch_first=False)
    exact(nn.LayerNorm(6), torch.randn(5, 3, 6), batch_first=False)


def test_layer_norm_of_strided_inputs(exact: Any) -> None:
    exact.op(lambda x, w, b: F.layer_norm(x.transpose(1, 2), (4,), w, b), torch.randn(3, 4, 5), w=(4,), b=(4,))
    exact.op(lambda x, w, b: F.layer_norm(x[:, :1].expand_as(x), (5,), w, b), torch.randn(3, 4, 5), w=(5,), b=(5,))


def test_layer_norm_over_the_batch_is_refused(exact_auto: Any) -> None:
    with pytest.raises(MixingError, match="the batch lies in dimension 0"):
        exact_auto.private(nn.LayerNorm((4, 4)), torch.randn(4, 4))
    with pytest.raises(MixingError, match="the batch lies in dimension 1"):
        exact_auto.private(lambda x, w: F.layer_norm(x.t(), (4,), w), torch.randn(4, 4), w=(4,))


@SIZES
@pytest.mark.parametrize("layer", ["module", "derived", "by hand"])
def test_rms_norm(exact_any: Any, B: int, T: int, d: int, layer: str) -> None:
    x = torch.randn(B, T, d)
    if layer == "module":
        exact_any(nn.RMSNorm(d), x)
        exact_any(nn.RMSNorm((T, d), eps=1e-3), x)
    elif layer == "derived":
        exact_any.op(lambda x, w: F.rms_norm(x, (d,), 1 + w), x, w=(d,))
    else:
        exact_any.op(lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)), x, w=(d,))


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 5), (4, 4, 4, 4), (3, 6, 2, 3), (2, 6, 2, 1, 3), (1, 6, 4)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, "all"])
def test_group_norm(exact_any: Any, shape: tuple[int, ...], groups: Any) -> None:
    exact_any(nn.GroupNorm(shape[1] if groups == "all" and len(shape) > 2 else min(groups, 2) if groups != "all" else 1,
                           shape[1]), torch.randn(shape))  # fmt: skip


def test_group_norm_in_other_memory_formats(exact: Any) -> None:
    x = torch.randn(3, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    exact(nn.GroupNorm(2, 4), x)
    exact.op(lambda x, w, b: F.group_norm(x.transpose(1, 2), 2, w, b), torch.randn(3, 5, 4), w=(4,), b=(4,))


def test_group_norm_in_parts(exact: Any) -> None:
    exact(nn.GroupNorm(2, 4, affine=False), torch.randn(4, 4, 4))
    exact.op(lambda x, w: F.group_norm(x, 2, w), torch.randn(4, 4, 4), w=(4,))
    for frozen in ("weight", "bias"):
        layer = nn.GroupNorm(2, 4)
        getattr(layer, frozen).requires_grad_(False)
        exact(layer, torch.randn(4, 4, 4))


def test_group_norm_of_frames_in_the_batch(exact: Any) -> None:
    exact.op(
        lambda x, w, b: F.group_norm(x.flatten(0, 1), 2, w, b).view(x.shape), torch.randn(4, 4, 4, 4), w=(4,), b=(4,)
    )
    exact.op(
        lambda x, w, b: F.group_norm(x.transpose(0, 1).flatten(0, 1), 2, w, b).view(2, -1, 4, 3).transpose(0, 1),
        torch.randn(4, 2, 4, 3),
        w=(4,),
        b=(4,),
    )


def test_group_norm_with_the_batch_in_the_channels_is_refused(exact_auto: Any) -> None:
    with pytest.raises(MixingError, match="the batch lies in dimension 1"):
        exact_auto.private(lambda x, w: F.group_norm(x.transpose(0, 1), 2, w), torch.randn(4, 4, 4), w=(4,))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.InstanceNorm1d(4, affine=True), (3, 4, 5)),
        (nn.InstanceNorm2d(4, affine=True), (4, 4, 4, 4)),
        (nn.InstanceNorm3d(2, affine=True), (3, 2, 2, 3, 2)),
        (nn.InstanceNorm2d(4), (3, 4, 3, 3)),
    ],
    ids=["1d", "2d", "3d", "plain"],
)
def test_instance_norm(exact_any: Any, layer: nn.Module, shape: tuple[int, ...]) -> None:
    exact_any(layer, torch.randn(shape))


def test_instance_norm_with_running_statistics_is_refused(exact_auto: Any) -> None:
    layer = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
    with pytest.raises(MixingError, match="track_running_stats=False"):
        exact_auto.private(nn.Sequential(nn.Conv1d(4, 4, 1), layer), torch.randn(3, 4, 5))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.BatchNorm1d(4), (4, 4)), (nn.BatchNorm1d(4), (3, 4, 5)), (nn.BatchNorm2d(4), (4, 4, 4, 4))],
    ids=["rows", "1d", "2d"],
)
def test_batch_norm_with_frozen_statistics(exact_any: Any, layer: Any, shape: tuple[int, ...]) -> None:
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    model = nn.Sequential(layer, nn.Tanh())
    layer.eval()
    assert model.training
    exact_any(model, torch.randn(shape))


def test_batch_norm_with_the_batchs_own_statistics_is_refused(exact_auto: Any) -> None:
    with pytest.raises(MixingError, match="GroupNorm"):
        exact_auto.private(nn.BatchNorm1d(4), torch.randn(3, 4))
    with pytest.raises(MixingError, match="batch normalization"):
        exact_auto.private(lambda x, w: F.batch_norm(x * w, None, None, training=True), torch.randn(3, 4), w=(4,))


def test_batch_norm_called_directly_without_affine_parameters_is_refused(exact_auto: Any) -> None:
    with pytest.raises(PrivacyError, match="batch normalization"):
        exact_auto.private(
            lambda x, w: torch.batch_norm(x * w, None, None, None, None, True, 0.1, 1e-5, False),
            torch.randn(3, 4),
            w=(4,),
        )
