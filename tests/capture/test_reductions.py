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


LOST = [
    lambda h: (h.T @ h).square().sum(),
    lambda h: (1 - h.std(0)).relu().mean(),
    lambda h: h.logsumexp(0).sum(),
    lambda h: h.sort(0).values[0].sum(),
    lambda h: h.T.cov().square().sum(),
    lambda h: torch.pdist(h).sum(),
]
SUMS = [
    lambda a, b: a + b,
    lambda a, b: a - 0.1 * b,
    lambda a, b: torch.add(a, b, alpha=2.0),
    lambda a, b: a.clone().add_(b),
    lambda a, b: sum([a, b]),
    lambda a, b: torch.stack([a, b]).sum(),
    lambda a, b: torch.cat([a[None], b[None]]).mean(),
    lambda a, b: torch.cat([a[None], a[None], b[None], a[None]])[1:].sum(),
]


@pytest.mark.parametrize("together", SUMS)
@pytest.mark.parametrize("term", LOST)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_loss_that_is_added_to_one_over_pairs_is_none(together, term, swapped):
    """In any order: what is lost is not made a sum by the sum that it is added to."""

    def function(h):
        terms = (term(h), h.square().mean()) if swapped else (h.square().mean(), term(h))
        return together(*terms)

    with pytest.raises(PrivacyError):
        clipped(function, loss=lambda out: out)


@pytest.mark.parametrize("together", SUMS)
def test_sums_of_sums_are_losses(together):
    norms, _ = clipped(lambda h: together(h.square().mean(), h.abs().sum() / 5), loss=lambda out: out)
    assert bool((norms > 0).all())
