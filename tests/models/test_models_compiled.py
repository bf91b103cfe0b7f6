"""Whole models under torch.compile: one graph for the forward and one for the backward, whatever the batch size."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.capture.compiled.private import Counted, assert_exact
from torch import Tensor, nn

V = 13


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 8)
        self.positions = nn.Parameter(torch.randn(1, 10, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embedding(ids) + self.positions[:, : ids.shape[1]]
        h = torch.cat([self.token.expand(len(ids), -1, -1), h], 1)
        return self.head(self.layers(h)[:, 0])


def loss(model: Any, batch: Any) -> Tensor:
    out = model(batch[0])
    return F.cross_entropy(getattr(out, "logits", out).flatten(0, -2), batch[1].flatten())


def ids(samples: int, *, each: bool) -> Any:
    x = torch.randint(0, V, (samples, 6))
    return x, torch.randint(0, V if each else 3, (samples, 6) if each else (samples,))


def test_encoder() -> None:
    torch.manual_seed(0)
    backend = Counted()
    assert_exact(Encoder().double(), loss, [ids(n, each=False) for n in (5, 3, 6, 4)], backend=backend, dynamic=True)
    assert backend.graphs == 1


def test_gpt2() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).double()
    backend = Counted()
    assert_exact(model, loss, [ids(n, each=True) for n in (5, 3, 6)], backend=backend, dynamic=True)
    assert backend.graphs == 1


def test_llama() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=12, max_position_embeddings=8, use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).double()
    backend = Counted()
    batches = [ids(n, each=True) for n in (5, 3, 6)]
    # It computes in float32 inside.
    assert_exact(model, loss, batches, backend=backend, dynamic=True, tolerance=1e-6)
    assert backend.graphs == 1


def test_convolutions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2), nn.Flatten(),
        nn.Linear(5, 3),
    ).double()  # fmt: skip
    batches = [(torch.randn(n, 3, 4, 4).double(), torch.randint(0, 3, (n,))) for n in (5, 3, 4)]
    backend = Counted()
    assert_exact(model, loss, batches, backend=backend, dynamic=True)
    assert backend.graphs == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(V, 8), nn.LayerNorm(8), nn.Linear(8, 4), nn.Flatten(), nn.Linear(24, 3))
    batches = [ids(n, each=False) for n in (5, 3)]
    assert_exact(model, loss, batches, backend="inductor", dynamic=True, tolerance=1e-5)
