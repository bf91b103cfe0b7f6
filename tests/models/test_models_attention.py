"""Transformers as torch.nn has them, unmodified."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")
D = 4
CAUSAL = nn.Transformer.generate_square_subsequent_mask(4)


def encoder_layer(*, batch_first: bool = True, **settings: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(D, 2, 8, dropout=0.0, batch_first=batch_first, **settings)


class Encoder(nn.Module):
    def __init__(self, mask: Tensor | None = None, *, causal: bool = False, **settings: Any) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(encoder_layer(**settings), 2, enable_nested_tensor=False)
        self.register_buffer("mask", mask)
        self.causal = causal

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        mask = None if self.mask is None else self.mask.to(x.dtype)
        return self.encoder(x, mask, src_key_padding_mask=hidden, is_causal=self.causal)


@pytest.mark.parametrize("B", [1, 3, 4])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("settings", [{}, {"norm_first": True}, {"activation": "gelu"}, {"bias": False}])
def test_encoder(exact: Any, B: int, batch_first: bool, settings: Any) -> None:
    x = torch.randn(B, 4, D) if batch_first else torch.randn(4, B, D)
    exact(Encoder(batch_first=batch_first, **settings), x, batch_first=batch_first)


@pytest.mark.parametrize("causal", [True, False])
def test_encoder_with_masks(exact: Any, causal: bool) -> None:
    exact(Encoder(CAUSAL, causal=causal), torch.randn(4, 4, D))
    hidden = torch.where(torch.arange(4) >= torch.tensor([[4], [2], [3]]), float("-inf"), 0.0)
    exact(Encoder(CAUSAL, causal=causal), torch.randn(3, 4, D), hidden)


@pytest.mark.parametrize("B", [1, 3, 4])
@pytest.mark.parametrize("batch_first", [True, False])
def test_encoder_and_decoder(exact: Any, B: int, batch_first: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Transformer(D, 2, 1, 1, 8, dropout=0.0, batch_first=batch_first)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.both(x, y, tgt_mask=CAUSAL.to(x.dtype), tgt_is_causal=True)

    x, y = (torch.randn(B, T, D) if batch_first else torch.randn(T, B, D) for T in (5, 4))
    exact(Net(), x, y, batch_first=batch_first)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("B", [1, 4])
def test_activation_checkpointing(exact: Any, reentrant: bool, B: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.block = nn.Linear(D, D), encoder_layer()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, self.first(x), use_reentrant=reentrant)

    exact(Net(), torch.randn(B, 4, D))


@pytest.mark.parametrize("trained", ["out_proj", "in_proj", "linear1", "norm", "nothing"])
def test_mostly_frozen(exact: Any, trained: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.encoder, self.head = nn.Linear(D, D), Encoder(), nn.Linear(D, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(self.first(x)))

    model = Net()
    for name, parameter in model.encoder.named_parameters():
        parameter.requires_grad_(trained in name)
    exact(model, torch.randn(4, 4, D))
