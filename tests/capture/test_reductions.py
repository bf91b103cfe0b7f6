"""What becomes of sums over the batch: added to rows of samples, or put out as vectors, they couple samples."""

import pytest
import torch
from tests.capture.compiled.private import attach
from torch import nn

from tacit.errors import LayoutError, MixingError, PrivacyError
from tacit.testing import private_gradients


class Behind(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


def clipped(function, loss=lambda out: out.square().sum()):
    torch.manual_seed(0)
    return private_gradients(
        Behind(function), lambda m, b: loss(m(b)), torch.randn(5, 3), max_grad_norm=1.0, loss_reduction="sum"
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h - h.mean(0),
        lambda h: h.mean(0) + h,
        lambda h: h.clone().sub_(h.mean(0)),
        lambda h: torch.stack([h, h.mean(0).expand(5, 2)]),
        lambda h: torch.cat([h, h.sum(0, keepdim=True)]),
    ],
)
def test_a_sum_over_the_batch_is_not_added_to_rows(function):
    with pytest.raises((MixingError, PrivacyError)):
        clipped(function)


def test_a_vector_of_sums_is_no_output():
    with pytest.raises(LayoutError):
        clipped(lambda h: h.mean(0))


@pytest.mark.parametrize("function", [lambda h: h.square().mean(), lambda h: h.square().mean() + 0.1 * h.abs().mean()])
def test_losses_inside_the_model_are(function):
    norms, _ = clipped(function, loss=lambda out: out)
    assert bool((norms > 0).all())


@pytest.mark.parametrize("function", [lambda h: h.mean(0), lambda h: h - h.mean(0)])
def test_nor_is_it_one_of_a_compiled_model(function):
    model = Behind(function)
    attach(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with pytest.raises(LayoutError, match="which of its numbers belong to which sample"):
        compiled(torch.randn(5, 3))
