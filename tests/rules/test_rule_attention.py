"""Multi-head attention as nn.MultiheadAttention and its users call it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tacit import PrivacyEngine
from tacit.testing import private_gradients

SIZES = pytest.mark.parametrize(("B", "T", "E", "heads"), [(3, 5, 4, 2), (4, 4, 4, 4), (1, 3, 4, 1), (2, 2, 2, 2)])


class Attend(nn.Module):
    """Attention whose weights, too, are part of the output."""

    def __init__(self, size: int, heads: int, mask: Tensor | None = None, **settings: Any) -> None:
        super().__init__()
        self.options = {key: settings.pop(key) for key in ("need_weights", "average_attn_weights") if key in settings}
        self.causal = settings.pop("is_causal", False)
        self.attention = nn.MultiheadAttention(size, heads, **settings)
        self.register_buffer("mask", mask)
        for parameter in self.attention.parameters():
            nn.init.normal_(parameter)

    def forward(
        self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        k = q if k is None else k
        v = k if v is None else v
        mask = None if self.mask is None else self.mask.to(q.dtype) if self.mask.is_floating_point() else self.mask
        out, weights = self.attention(
            q, k, v, key_padding_mask=hidden, attn_mask=mask, is_causal=self.causal, **self.options
        )
        if weights is None:
            return out
        extra = weights.flatten(1).sin().sum(1)
        return out + (extra[:, None, None] if self.attention.batch_first else extra[:, None])


def inputs(B: int, T: int, E: int, *, batch_first: bool) -> Tensor:
    return torch.randn(B, T, E) if batch_first else torch.randn(T, B, E)


@SIZES
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("settings", [{}, {"need_weights": False}, {"average_attn_weights": False}, {"bias": False}])
def test_self_attention(exact: Any, B: int, T: int, E: int, heads: int, batch_first: bool, settings: Any) -> None:
    model = Attend(E, heads, batch_first=batch_first, **settings)
    exact(model, inputs(B, T, E, batch_first=batch_first), batch_first=batch_first)


@SIZES
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("settings", [{}, {"need_weights": False}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_cross_attention(exact: Any, B: int, T: int, E: int, heads: int, batch_first: bool, settings: Any) -> None:
    model = Attend(E, heads, batch_first=batch_first, **settings)
    q, k = (inputs(B, length, E, batch_first=batch_first) for length in (T, T + 1))
    exact(model, q, k, batch_first=batch_first)


@pytest.mark.parametrize("B", [1, 3, 4])
@pytest.mark.parametrize("weights", [True, False])
def test_three_inputs_of_three_widths(exact: Any, B: int, weights: bool) -> None:
    model = Attend(4, 2, kdim=3, vdim=5, add_bias_kv=True, add_zero_attn=True, batch_first=True, need_weights=weights)
    exact(model, torch.randn(B, 4, 4), torch.randn(B, 4, 3), torch.randn(B, 4, 5))


MASKS = {
    "boolean": lambda T: torch.ones(T, T).triu(1).bool(),
    "added": lambda T: torch.randn(T, T),
    "for each head": lambda T: torch.randn(T, T).expand(4 * 2, T, T).clone(),
}


@pytest.mark.parametrize("padding", [None, "boolean", "added"])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("bias_kv", [True, False])
@pytest.mark.parametrize("mask", [None, "boolean", "added"])
def test_masks(exact_auto: Any, mask: str | None, padding: str | None, weights: bool, bias_kv: bool) -> None:
    if padding is not None and mask not in (None, padding):
        return  # torch warns of masks of two kinds
    T = 4
    model = Attend(
        4,
        2,
        None if mask is None else MASKS[mask](T),
        add_bias_kv=bias_kv,
        add_zero_attn=bias_kv,
        need_weights=weights,
        batch_first=True,
    )
    hidden = torch.arange(T) >= torch.tensor([[4], [2], [3], [1]])
    x = torch.randn(4, T, 4)
    if padding is None:
        exact_auto(model, x)
    elif padding == "boolean":
        exact_auto(model, x, x.clone(), x.clone(), hidden)
    else:
        exact_auto(model, x, x.clone(), x.clone(), torch.where(hidden, -5.0, 0.0))


def test_a_mask_for_each_sample_and_head(exact: Any) -> None:
    class Net(Attend):
        def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
            return self.attention(x, x, x, attn_mask=bias.repeat_interleave(2, 0), need_weights=False)[0]

    exact(Net(4, 2, batch_first=True), torch.randn(4, 4, 4), torch.randn(4, 4, 4))


@pytest.mark.parametrize("weights", [True, False])
def test_the_causal_hint(exact: Any, weights: bool) -> None:
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    exact(Attend(4, 2, mask, is_causal=True, need_weights=weights, batch_first=True), torch.randn(3, 4, 4))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_learned_queries(exact: Any, batch_first: bool, weights: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.randn(2, 4))
            self.attend = Attend(4, 2, batch_first=batch_first, need_weights=weights)

        def forward(self, x: Tensor) -> Tensor:
            if batch_first:
                return self.attend(self.query.expand(x.shape[0], -1, -1), x)
            return self.attend(self.query[:, None].expand(-1, x.shape[1], -1), x)

    exact(Net(), inputs(3, 3, 4, batch_first=batch_first), batch_first=batch_first)


@pytest.mark.parametrize("frozen", ["in_proj_weight", "in_proj_bias", "out_proj.weight", "bias_k"])
def test_frozen_parts(exact: Any, frozen: str) -> None:
    model = Attend(4, 2, add_bias_kv=True, batch_first=True)
    model.attention.get_parameter(frozen).requires_grad_(False)
    exact(model, torch.randn(3, 4, 4))
    exact(model, torch.randn(3, 4, 4), torch.randn(3, 5, 4))


def test_one_layer_used_twice_and_its_weight_elsewhere(exact: Any) -> None:
    class Net(Attend):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            x = super().forward(super().forward(x), x)
            return F.linear(x, self.attention.in_proj_weight[4:8])

    exact(Net(4, 2, batch_first=True), torch.randn(4, 4, 4))


def made_private(model: nn.Module) -> PrivacyEngine:
    """With dropout as it is: the checks switch it off."""
    engine = PrivacyEngine()
    engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        data_loader=DataLoader(TensorDataset(torch.arange(3)), batch_size=3),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
    )
    return engine


@pytest.mark.parametrize("settings", [{}, {"need_weights": False}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_the_forward_is_torchs_own(settings: Any) -> None:
    torch.manual_seed(0)
    model = Attend(4, 2, MASKS["added"](5), batch_first=True, dropout=0.5, **settings).double()
    x, hidden = torch.randn(3, 5, 4).double(), torch.arange(5) >= torch.tensor([[5], [2], [3]])
    hidden = torch.where(hidden, -5.0, 0.0).double()

    def run() -> Tensor:
        torch.manual_seed(1)
        out: Tensor = model(x, x, x, hidden)
        return out

    plain = run()
    engine = made_private(model)
    private = run()
    private.sum().backward()
    torch.testing.assert_close(private, plain, rtol=1e-12, atol=1e-12)
    assert engine.stats is not None
    assert torch.isfinite(engine.stats.norms).all()


def test_autocast() -> None:
    torch.manual_seed(0)
    model = Attend(4, 2, batch_first=True)

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m(x).float().square().mean()

    x = torch.randn(3, 5, 4)
    norms, _ = private_gradients(model, loss, x, max_grad_norm=1.0)
    exactly, _ = private_gradients(model, lambda m, x: m(x).square().mean(), x, max_grad_norm=1.0)
    torch.testing.assert_close(norms, exactly, rtol=0.1, atol=0.0)
