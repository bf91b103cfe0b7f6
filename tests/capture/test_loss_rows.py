"""Losses with a reduction inside a model: right where each sample has a part of its own, and else refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tacit.errors import PrivacyError
from tacit.testing import private_gradients

B = 4  # as many samples as classes: sizes tell nothing
ORDER = torch.tensor([1, 2, 3, 0])
ONES = torch.ones(B, dtype=torch.float64)
CLASSES = torch.tensor([3, 0, 0, 1])


class Behind(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(3, B, dtype=torch.float64)
        self.function = function

    def forward(self, x, y):
        return self.function(self.layer(x), y)


def clipped(function, x, y, reduction, bound=1e9):
    torch.manual_seed(0)
    return private_gradients(
        Behind(lambda h, y: function(h, y, reduction=reduction)),
        lambda m, b: m(*b),
        (x, y),
        max_grad_norm=bound,
        loss_reduction=reduction,
    )


def batch():
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(B, n, generator=generator, dtype=torch.float64) for n in (3, B))
    return x, y


def probabilities(h):
    return h.detach().softmax(1)


RIGHT = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth l1": F.smooth_l1_loss,
    "huber, weighted": lambda h, y, **s: F.huber_loss(h, y, weight=y.abs(), **s),
    "one target": lambda h, _y, **s: F.mse_loss(h, torch.ones(B, B, dtype=h.dtype), **s),
    "columns": lambda h, y, **s: F.mse_loss(h[:, :1], y[:, :1], **s),
    "vectors": lambda h, y, **s: F.mse_loss(h[:, 0], y[:, 0], **s),
    "swapped": lambda h, y, **s: F.mse_loss(h.T, y.T, **s),
    "both in another order": lambda h, y, **s: F.mse_loss(h[ORDER], y[ORDER], **s),
    "named": lambda h, y, **s: F.mse_loss(target=y, input=h, **s),
    "cross entropy": lambda h, _y, **s: F.cross_entropy(h, CLASSES, **s),
    "own classes": lambda h, y, **s: F.cross_entropy(h, y.argmax(1), **s),
    "smoothed": lambda h, y, **s: F.cross_entropy(h, y.argmax(1), label_smoothing=0.1, **s),
    "probabilities": lambda h, y, **s: F.cross_entropy(h, y.softmax(1), **s),
    "over positions": lambda h, y, **s: F.cross_entropy(h.view(B, 2, 2), y[:, :2].gt(0).long(), **s),
    "time first": lambda h, y, **s: F.cross_entropy(h.view(B, 2, 2).permute(2, 1, 0), y[:, :2].gt(0).long().T, **s),
    "all tokens": lambda h, y, **s: F.cross_entropy(h.view(-1, 2), y[:, :2].gt(0).long().view(-1), **s),
    "nll": lambda h, y, **s: F.nll_loss(h.log_softmax(1), y.argmax(1), **s),
    "kl": lambda h, y, **s: F.kl_div(h.log_softmax(1), y.softmax(1), **s),
    "binary": lambda h, y, **s: F.binary_cross_entropy_with_logits(h, y.gt(0).to(h), y.abs(), pos_weight=ONES, **s),
    "gaussian": lambda h, y, **s: F.gaussian_nll_loss(h, y, h.exp(), **s),
    "gaussian, one variance each": lambda h, y, **s: F.gaussian_nll_loss(h, y, h[:, 0].exp(), **s),
    "poisson": F.poisson_nll_loss,
    "hinge": lambda h, y, **s: F.hinge_embedding_loss(h, y.sign(), **s),
    "soft margin": lambda h, y, **s: F.soft_margin_loss(h, y.sign(), **s),
    "ranking": lambda h, y, **s: F.margin_ranking_loss(h[:, 0], h[:, 1], y[:, 0].sign(), **s),
    "cosine": lambda h, y, **s: F.cosine_embedding_loss(h, y, y[:, 0].sign(), **s),
    "triplet": lambda h, y, **s: F.triplet_margin_loss(h, y, y + 0.1, **s),
    "multi margin": lambda h, y, **s: F.multi_margin_loss(h, y.argmax(1), **s),
    "labels": lambda h, y, **s: F.multilabel_soft_margin_loss(h, y.gt(0).to(h), **s),
    "label numbers": lambda h, y, **s: F.multilabel_margin_loss(h, y.argsort(1), **s),
}  # fmt: skip


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.filterwarnings("error::tacit.errors.FallbackWarning")
def test_losses_of_each_sample_are_right(name, reduction):
    x, y = batch()
    function = RIGHT[name]
    norms, sums = clipped(function, x, y, reduction)
    model_sums = plain(function, x, y, reduction)
    for key, value in sums.items():
        torch.testing.assert_close(value / (B if reduction == "mean" else 1), model_sums[key], check_dtype=False)
    moved = x.clone()
    moved[0] += 3
    other, _ = clipped(function, moved, y, reduction)
    torch.testing.assert_close(norms[1:], other[1:])


def plain(function, x, y, reduction):
    torch.manual_seed(0)
    model = Behind(lambda h, y: function(h, y, reduction=reduction))
    model(x, y).backward()
    return {name: p.grad for name, p in model.named_parameters()}


MIXED = {
    "(B, 1) against (B,)": lambda h, y, **s: F.mse_loss(h[:, :1], y[:, 0], **s),
    "(B,) against (B, 1)": lambda h, y, **s: F.l1_loss(h[:, 0], y[:, :1], **s),
    "other order": lambda h, y, **s: F.mse_loss(h, y[ORDER], **s),
    "own other order": lambda h, _y, **s: F.mse_loss(h, h[ORDER], **s),
    "rolled": lambda h, _y, **s: F.mse_loss(h, h.roll(1, 0), **s),
    "rolled, before": lambda h, _y, **s: F.smooth_l1_loss(h.roll(1, 0).detach(), h, **s),
    "flipped": lambda h, _y, **s: F.l1_loss(h, h.flip(0), **s),
    "over samples": lambda h, _y, **s: F.mse_loss(h, h.softmax(0), **s),
    "transposed": lambda h, _y, **s: F.huber_loss(h, h.T, **s),
    "named, transposed": lambda h, _y, **s: F.huber_loss(input=h, target=h.T, **s),
    "triplet": lambda h, y, **s: F.triplet_margin_loss(h, y, h.roll(1, 0), **s),
    "cosine": lambda h, y, **s: F.cosine_embedding_loss(h, h[ORDER], y[:, 0].sign(), **s),
    "multi margin": lambda h, y, **s: F.multi_margin_loss(h, y.argmax(1).roll(1), **s),
    "kl": lambda h, _y, **s: F.kl_div(h.log_softmax(1), h.softmax(0), **s),
    "binary": lambda h, y, **s: F.binary_cross_entropy_with_logits(h, y.gt(0).to(h), h.softmax(0).detach(), **s),
    "divided by weights": lambda h, y, **s: F.mse_loss(h, y, weight=y.abs(), **{**s, "reduction": "mean"}),
    "classes rolled": lambda h, y, **s: F.cross_entropy(h, y.argmax(1).roll(1), **s),
    "classes in another order": lambda h, y, **s: F.cross_entropy(h, y.argmax(1)[ORDER], **s),
    "class weights of the batch": lambda h, y, **_: F.cross_entropy(h, CLASSES, y[:, 0].abs(), reduction="sum"),
    "samples as classes": lambda h, y, **s: F.cross_entropy(h.T, y[0].gt(0).long(), **s),
    "one by one": lambda h, y, **s: F.cross_entropy(h[:, 0], y[0, 0].gt(0).long(), **s),
    "uneven, in another order": lambda h, y, **s: F.cross_entropy(h[ORDER], y[:, 0].gt(0) * 101 - 100, **s),
    "gaussian": lambda h, y, **s: F.gaussian_nll_loss(h, y, h.T.exp(), **s),
    "labels": lambda h, y, **s: F.multilabel_soft_margin_loss(h, y.gt(0).to(h).T, **s),
}  # fmt: skip


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", MIXED)
@pytest.mark.filterwarnings("ignore")
def test_losses_that_pair_samples_are_refused(name, reduction):
    x, y = batch()
    with pytest.raises(PrivacyError):
        clipped(MIXED[name], x, y, reduction)


@pytest.mark.parametrize("name", ["rolled", "other order", "triplet", "gaussian", "classes rolled"])
@pytest.mark.filterwarnings("ignore")
def test_so_they_are_as_a_term_of_a_sum(name):
    x, y = batch()
    with pytest.raises(PrivacyError):
        clipped(lambda h, y, **s: h.square().sum() + MIXED[name](h, y, **s), x, y, "sum")
