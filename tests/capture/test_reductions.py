"""What becomes of sums over the batch: added to rows of samples, or put out as vectors, they couple samples."""

import pytest
import torch
import torch.nn.functional as F
from tests.capture.behind import Behind
from tests.capture.compiled.private import attach
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from tacit.errors import CoupledLossWarning, LayoutError, MixingError, PrivacyError
from tacit.testing import private_gradients


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


class Masked(nn.Module):
    """A loss inside the model, of rows and of what the data set says about them."""

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.function = function

    def forward(self, x, mask, lengths):
        return self.function(self.layer(x), mask, lengths)


def packed(h, lengths):
    return pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False).data


def masked_batch():
    torch.manual_seed(0)
    x, mask = torch.randn(4, 6, 3), torch.zeros(4, 6, dtype=torch.bool)
    mask[:, :2] = True
    mask[0] = True
    return x, mask, mask.sum(1)


def masked_norms(function, batch):
    torch.manual_seed(0)
    loss = lambda m, b: m(*b)  # noqa: E731
    return private_gradients(Masked(function), loss, batch, max_grad_norm=1.0, loss_reduction="sum")[0]


CHOSEN = {
    "masked": lambda h, mask, _: h[mask].square().mean(),
    "masked, rows": lambda h, mask, _: h[mask].square().mean(0).sum(),
    "mse_loss": lambda h, mask, _: F.mse_loss(h[mask], torch.ones_like(h)[mask]),
    "l1_loss, by name": lambda h, mask, _: F.l1_loss(input=h[mask], target=torch.ones_like(h)[mask], reduction="mean"),
    "kl_div": lambda h, mask, _: F.kl_div(h[mask], torch.full_like(h, 0.5)[mask], reduction="batchmean"),
    "packed": lambda h, _, lengths: packed(h, lengths).square().mean(),
    "repeated": lambda h, _, lengths: h[:, 0].repeat_interleave(lengths, 0).square().mean(),
    "mse_loss, weighted": lambda h, mask, _: F.mse_loss(
        h, torch.ones_like(h), weight=mask.float().unsqueeze(-1).expand_as(h)
    ),
    "mse_loss, weighted by place": lambda h, mask, _: F.mse_loss(
        h, torch.ones_like(h), None, None, "mean", mask.float().unsqueeze(-1).expand_as(h)
    ),
    "nanmean": lambda h, mask, _: (h - torch.where(mask, 0.0, torch.nan).unsqueeze(-1)).square().nanmean(),
}


@pytest.mark.parametrize("function", CHOSEN.values(), ids=CHOSEN)
def test_a_mean_over_as_many_rows_as_samples_decide(function):
    """One long sample would shrink the gradients of all others before any is clipped."""
    with pytest.raises(MixingError, match="each sample's own mean"):
        masked_norms(function, masked_batch())


def test_a_cross_entropy_of_rows_that_a_mask_picks_is_a_mean_of_means_or_refused():
    """Of targets that come from the batch the samples are known, of constant ones that a mask picks they are not."""
    with pytest.warns(CoupledLossWarning, match="each one's own mean"):
        masked_norms(lambda h, mask, _: F.cross_entropy(h[mask], (~mask).long()[mask]), masked_batch())
    with pytest.raises(PrivacyError):
        masked_norms(
            lambda h, mask, _: F.cross_entropy(h[mask], torch.zeros(4, 6, dtype=torch.long)[mask]), masked_batch()
        )


ALLOWED = {
    "sum": lambda h, mask, _: h[mask].square().sum(),
    "mse_loss, sum": lambda h, mask, _: F.mse_loss(h[mask], torch.ones_like(h)[mask], reduction="sum"),
    "mse_loss, sum by place": lambda h, mask, _: F.mse_loss(h[mask], torch.ones_like(h)[mask], None, None, "sum"),
    "mean over features": lambda h, mask, _: h[mask].square().mean(-1).sum(),
    "each sample's own": lambda h, mask, lengths: (
        (h.square() * mask.unsqueeze(-1)).sum((1, 2)) / lengths.clamp(min=1)
    ).mean(),
    "constant weights": lambda h, *_: F.mse_loss(h, torch.ones_like(h), weight=torch.rand(6, 2).expand(4, 6, 2)),
}


@pytest.mark.parametrize("function", ALLOWED.values(), ids=ALLOWED)
def test_sums_and_means_of_each_sample_are_apart(function):
    batch = masked_batch()
    x, mask, _ = batch
    other = mask.clone()
    other[0, 3:] = False
    before, after = masked_norms(function, batch), masked_norms(function, (x, other, other.sum(1)))
    torch.testing.assert_close(before[1:], after[1:])


def test_as_many_of_each_sample_may_be_averaged():
    x, mask, _ = masked_batch()
    mask = torch.stack([torch.randperm(6) < 3 for _ in range(4)])
    norms = masked_norms(CHOSEN["masked"], (x, mask, mask.sum(1)))
    assert bool((norms > 0).all())
