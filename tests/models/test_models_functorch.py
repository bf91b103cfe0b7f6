"""Whole models on one copy of their parameters for each sample: ``grad_sample_mode="functorch"``."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from tacit.testing import check_exactness


class Recurrent(nn.Module):
    """nn.LSTM keeps its weights in a list of its own, which functional calls must replace, too."""

    def __init__(self, layer: type[nn.RNNBase], *, batch_first: bool) -> None:
        super().__init__()
        self.rnn, self.head = layer(4, 4, batch_first=batch_first), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.cls = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(1, 1, 4))
        self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x * self.scale], 1)
        return self.norm(x) @ self.norm.weight


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.LayerNorm(6), nn.Linear(6, 4)),
    "convnet": lambda: nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.GELU(), nn.Linear(4, 4)),
    "attention": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
    "own parameters": Own,
    "lstm": lambda: Recurrent(nn.LSTM, batch_first=True),
    "gru": lambda: Recurrent(nn.GRU, batch_first=True),
}


@pytest.mark.parametrize("B", [1, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, B: int) -> None:
    torch.manual_seed(0)
    batch = torch.randn(B, 4, 4).double(), torch.randn(B, 4).double()
    report = check_exactness(
        MODELS[name]().double(),
        lambda m, b: (m(b[0]).mean(1) - b[1]).square().mean(),
        batch,
        grad_sample_mode="functorch",
    )
    assert float(report.reference.norms.max()) > 0


@pytest.mark.parametrize("B", [1, 3, 4])
def test_batch_in_dimension_one(B: int) -> None:
    torch.manual_seed(0)
    check_exactness(
        Recurrent(nn.GRU, batch_first=False).double(),
        lambda m, x: m(x).square().mean(),
        torch.randn(4, B, 4).double(),
        grad_sample_mode="functorch",
        batch_first=False,
    )


def test_two_losses_of_one_unmodified_language_model() -> None:
    """Outputs in a dataclass, and the model's own loss, a number for the batch."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0)
    config.attn_pdrop = 0
    model: Any = GPT2LMHeadModel(config).double()
    ids = torch.randint(0, 11, (3, 5))
    check_exactness(model, lambda m, b: m(b).logits.square().mean(), ids, grad_sample_mode="functorch")
    # the model takes its loss in float32
    check_exactness(model, lambda m, b: m(b, labels=b).loss, ids, grad_sample_mode="functorch", tolerance=1e-6)


@pytest.mark.parametrize("settings", [{"padding_idx": 0}, {"padding_idx": -2}, {"scale_grad_by_freq": True}])
@pytest.mark.parametrize("B", [1, 3, 4])
def test_embeddings_with_padding(settings: dict[str, Any], B: int) -> None:
    """torch.vmap itself would give the padding a gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(4, 4, **settings), nn.Linear(4, 4)).double()
    ids = torch.randint(0, 4, (B, 4))
    ids[0] = torch.tensor([0, 2, 2, 1])
    check_exactness(model, lambda m, b: m(b).square().mean((1, 2)).mean(), ids, grad_sample_mode="functorch")
