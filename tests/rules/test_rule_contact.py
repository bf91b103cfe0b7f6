from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tacit.errors import LayoutError, MixingError, NoRuleError, PrivacyError
from tacit.rules.contact import RuleFunction, detached, refuse_double_backward
from tacit.testing import private_gradients


def test_detached_keeps_the_storage_and_nothing_else() -> None:
    p = nn.Parameter(torch.ones(3))
    assert detached(None) is None
    value = detached(p)
    assert value is not None
    assert value.data_ptr() == p.data_ptr()
    assert not value.requires_grad


def test_double_backward_is_refused_only_while_a_graph_is_recorded() -> None:
    with torch.no_grad():
        refuse_double_backward()
    with pytest.raises(NoRuleError, match="create_graph=True"):
        refuse_double_backward()


class Doubled(RuleFunction):
    @staticmethod
    def forward(ctx: Any, x: Tensor, times: int) -> Tensor:
        assert ctx is not None
        return x * times

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g * 2, None


def test_a_rule_s_function_is_applied_as_any_other() -> None:
    x = torch.ones(3, requires_grad=True)
    Doubled.apply(x, 2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0] * 3
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.vmap(lambda row: Doubled.apply(row, 2))(x.detach())
    kept: list[Tensor] = []
    torch.func.grad(lambda value: (kept.append(value), value.sum())[1])(torch.ones(3))
    out = Doubled.apply(kept[0], 2)  # what is left of a transform is unwrapped
    assert not torch._C._functorch.is_functorch_wrapped_tensor(out)
    assert out.tolist() == [2.0] * 3


class Sequential(nn.Module):
    """A recurrent layer, over whole sequences or packed ones."""

    def __init__(self, layer: nn.Module, *, packed: bool = False) -> None:
        super().__init__()
        self.layer, self.packed = layer, packed

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed:
            return self.layer(x)[0]  # type: ignore[no-any-return]
        packed = pack_padded_sequence(x, torch.tensor([4, 2, 1, 1]), batch_first=True)
        return pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0]


class Backward:
    """A loss whose backward runs within autocast."""

    def __init__(self, loss: Tensor, dtype: torch.dtype) -> None:
        self.loss, self.dtype = loss, dtype

    def backward(self) -> None:
        with torch.autocast("cpu", dtype=self.dtype):
            self.loss.backward()


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(4, 5),
        lambda: nn.Conv1d(4, 5, 2),
        lambda: nn.ConvTranspose1d(4, 5, 2),
        lambda: nn.Sequential(nn.LayerNorm(4), nn.GroupNorm(2, 4)),
        lambda: Sequential(nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True)),
        lambda: Sequential(nn.LSTM(4, 5, proj_size=3, batch_first=True)),
        lambda: Sequential(nn.LSTM(4, 4, batch_first=True), packed=True),
        lambda: Sequential(nn.GRU(4, 5, batch_first=True)),
        lambda: Sequential(nn.RNN(4, 4, batch_first=True)),
    ],
)
def test_a_backward_within_autocast_has_the_types_of_its_forward(make: Any, within: bool, dtype: torch.dtype) -> None:
    """``loss.backward()`` is often left where the forward is. What a rule's forward computed in float32 stays so."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), make()), torch.randn(4, 4, 4)

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype, enabled=within):
            return m(x).float().square().sum()

    norms, sums = private_gradients(model, loss, x, max_grad_norm=1.0, loss_reduction="sum")
    same, of_same = private_gradients(
        model, lambda m, x: Backward(loss(m, x), dtype), x, max_grad_norm=1.0, loss_reduction="sum"
    )
    tolerance = 1e-2 if within else 1e-6  # a convolution may take another form, that rounds otherwise
    torch.testing.assert_close(same, norms, rtol=tolerance, atol=0)
    for name, total in sums.items():
        assert float((of_same[name] - total).norm()) <= tolerance * float(total.norm())


def test_a_call_without_a_rule_names_module_parameter_and_function(exact_auto: Any) -> None:
    with pytest.raises(
        NoRuleError,
        match=r"(?s)`kron` on `w` \(4, 5\) \(in the model, Op\.forward\).*unclipped.*Freeze.*neither the mean",
    ):
        exact_auto.private(lambda x, w: torch.kron(x, w).sum().exp(), torch.randn(3, 5), w=(4, 5))


def test_a_derived_parameter_is_named_by_its_source(exact_auto: Any) -> None:
    with pytest.raises(NoRuleError, match="a tensor computed from `w`"):
        exact_auto.private(lambda x, w: torch.kron(x, w * 2).sum().exp(), torch.randn(3, 5), w=(4, 5))


def test_a_batch_in_the_features_is_refused(exact_auto: Any) -> None:
    with pytest.raises(MixingError, match=r"the batch lies in dimension 1 of an input of shape \(4, 4\)"):
        exact_auto.private(lambda x, w: F.linear(x.t(), w), torch.randn(4, 4), w=(4, 4))


def test_a_lost_batch_is_refused_and_the_call_that_lost_it_is_named(exact_auto: Any) -> None:
    with pytest.raises(LayoutError, match="in `mean`"):
        exact_auto.private(lambda x, w: x + F.linear(x.mean(0), w), torch.randn(4, 4), w=(4, 4))


def test_a_trainable_tensor_that_is_no_parameter_is_refused(exact_auto: Any) -> None:
    stranger = torch.randn(4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(PrivacyError, match="was not a parameter of the model"):
        exact_auto.private(lambda x, w: x * w * stranger, torch.randn(3, 4), w=(4,))
