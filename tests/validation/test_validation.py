"""What stands in the way is listed at once; batch normalization is replaced on a copy."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tacit import PrivacyEngine
from tacit.errors import ConfigurationError, MixingError
from tacit.testing import check_exactness

ENGINE = PrivacyEngine()


class Bad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm1d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False)])
        self.deep = nn.Sequential(nn.Sequential(nn.SyncBatchNorm(4), nn.InstanceNorm1d(4, track_running_stats=True)))
        self.table, self.lazy = nn.Embedding(5, 4, max_norm=1.0), nn.LazyLinear(3)
        self.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_everything_is_listed_at_once_with_its_path() -> None:
    model = Bad()
    issues = ENGINE.validate(module=model)
    paths = [issue.path for issue in issues]
    assert paths == ["phase", "norms.0", "norms.1", "deep.0.0", "deep.0.1", "table", "lazy.weight", "lazy.bias"]
    with pytest.raises(
        MixingError, match=r"(?s)8 things.*- norms\.0: BatchNorm1d in train mode.*- table: .*max_norm=1\.0"
    ):
        ENGINE.validate(module=model, strict=True)
    assert not ENGINE.is_compatible(module=model)
    assert not [issue for issue in ENGINE.validate(module=model.eval()) if issue.mixing]


def test_frozen_affine_weights_do_not_hide_batch_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert [issue.path for issue in ENGINE.validate(module=model)] == ["0"]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


def test_optimizer_and_loader_too() -> None:
    model, other = nn.LSTM(4, 4), nn.Linear(4, 4)
    good = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.randn(6, 4)), batch_size=2)
    assert ENGINE.is_compatible(module=model, optimizer=good, data_loader=loader)
    bad: Any = {"optimizer": torch.optim.SGD(other.parameters(), lr=0.1), "data_loader": DataLoader(Stream())}
    issues = ENGINE.validate(module=model, **bad)
    assert [issue.path for issue in issues] == ["optimizer", "data_loader"]
    assert "are not the model's" in issues[0].message
    with pytest.raises(ConfigurationError, match="2 things"):
        ENGINE.validate(module=model, strict=True, **bad)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x)).relu_()


def resnet() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), Block(6), Block(6), nn.Flatten(), nn.LazyLinear(3))
    model(torch.randn(5, 3, 6, 6))  # running statistics that are not the initial ones
    nn.init.normal_(model[1].weight)
    return model


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("way", ["group", "frozen", "instance"])
def test_a_converted_network_trains_privately(way: str) -> None:
    torch.manual_seed(0)
    model = resnet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made, changes = ENGINE.get_compatible_module(model, batch_norm=way)
    assert [change.path for change in changes] == ["1", "2.norm", "3.norm"]
    assert "BatchNorm2d(6" in str(changes[0])
    assert ENGINE.is_compatible(module=made)
    assert not ENGINE.is_compatible(module=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(made[1].weight, model[1].weight)
    assert made[1].weight is not model[1].weight
    x = torch.randn(4, 3, 6, 6)
    check_exactness(made.double(), lambda m, b: m(b).square().mean(), x.double())
    if way == "frozen":
        model.eval()
        torch.testing.assert_close(made.float().train()(x), model(x))
        assert made.state_dict().keys() == model.state_dict().keys()


def test_rows_of_features_keep_their_variety() -> None:
    """One channel a group would normalize every number to zero."""
    for channels in (2, 3, 4, 7, 64):
        made, _ = ENGINE.get_compatible_module(nn.BatchNorm1d(channels))
        assert isinstance(made, nn.GroupNorm)
        assert made.num_groups <= max(channels // 2, 1)
        assert made(torch.randn(5, channels)).std() > 0.1


def test_shared_layers_stay_shared_and_other_settings_are_mended() -> None:
    norm = nn.BatchNorm1d(4)
    model = nn.ModuleDict({"a": norm, "b": norm, "table": nn.Embedding(3, 4, max_norm=1.0)})
    model["instance"] = nn.InstanceNorm1d(4, track_running_stats=True)
    made, changes = ENGINE.get_compatible_module(model)
    assert made["a"] is made["b"]
    assert made["table"].max_norm is None
    assert [change.path for change in changes] == ["a", "table", "instance"]
    assert ENGINE.is_compatible(module=made)


def test_what_cannot_be_converted() -> None:
    with pytest.raises(ConfigurationError, match="without running statistics"):
        ENGINE.get_compatible_module(nn.BatchNorm1d(4, track_running_stats=False), batch_norm="frozen")
    with pytest.raises(ConfigurationError, match="batch_norm='layer' is not known"):
        ENGINE.get_compatible_module(nn.BatchNorm1d(4), batch_norm="layer")


def test_attention_and_recurrent_layers_are_kept() -> None:
    model = nn.ModuleList([nn.LSTM(4, 4), nn.MultiheadAttention(4, 2), nn.EmbeddingBag(3, 4)])
    made, changes = ENGINE.get_compatible_module(model)
    assert not changes
    assert [type(part) for part in made] == [type(part) for part in model]
