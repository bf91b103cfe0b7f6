"""Tensors that combine samples and leave the forward by another way than as an output get no gradient."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from tests.capture.behind import Behind
from torch import nn
from torch.distributions import Normal

from tacit.errors import MixingError, PrivacyError
from tacit.testing import check_exactness, private_gradients


class Keeping(Behind):
    """Puts out its layer's rows, and keeps what the function makes of them as an attribute."""

    def forward(self, x):
        h = self.layer(x)
        self.kept = self.function(h)
        return h


def clipped(model, loss, **settings):
    torch.manual_seed(0)
    return private_gradients(
        model, lambda m, b: loss(m, m(b)), torch.randn(5, 3), max_grad_norm=1.0, loss_reduction="sum", **settings
    )


COMBINED = {
    "balance of a mixture of experts": lambda h: (h.mean(0) * h.mean(0)).sum(),
    "centred": lambda h: h - h.mean(0),
    "softmax over the batch": lambda h: h.softmax(0),
    "largest": lambda h: h.amax(0),
    "mean": lambda h: h.mean(0),
    "view of a mean": lambda h: h.mean(0).unsqueeze(0),
}


@pytest.mark.parametrize("function", COMBINED.values(), ids=COMBINED)
def test_an_attribute(function):
    with pytest.raises(MixingError, match="another way than as an output"):
        clipped(Keeping(function), lambda model, out: out.sum() + model.kept.square().sum())


@pytest.mark.parametrize("function", COMBINED.values(), ids=COMBINED)
@pytest.mark.parametrize(
    "hidden",
    [
        (lambda value: SimpleNamespace(value=value), lambda out: out.value),
        (lambda value: Normal(value, 1.0, validate_args=False), lambda out: out.loc),
        (lambda value: iter([value]), next),
        (lambda value: {value}, lambda out: out.pop()),
        (lambda value: lambda: value, lambda out: out()),
    ],
    ids=["object", "distribution", "iterator", "set", "closure"],
)
def test_an_object(function, hidden):
    hide, find = hidden
    with pytest.raises(MixingError, match="another way than as an output"):
        clipped(Behind(lambda h: hide(function(h))), lambda _, out: find(out).square().sum())


def test_written_in_place():
    def written(h):
        kept = torch.zeros(5, 2)
        kept[:] = h.mean(0)
        return kept

    with pytest.raises(MixingError, match="another way than as an output"):
        clipped(Keeping(written), lambda model, out: out.sum() + model.kept.square().sum())


def test_two_passes():
    with pytest.raises(MixingError, match="another way than as an output"):
        clipped(
            Behind(lambda h: SimpleNamespace(o=h - h.mean(0))), lambda _, out: out.o.square().sum(), memory_budget=1
        )


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h.square(),
        lambda h: h.square().mean(0).sum(),
        lambda h: h.mean(0).detach(),
        lambda h: (h - h.mean(0)).detach(),
    ],
)
def test_what_combines_no_samples_may_be_kept(function):
    norms, _ = clipped(Keeping(function), lambda model, out: out.square().sum() + model.kept.square().sum().sqrt())
    assert bool((norms > 0).all())


@pytest.mark.parametrize("function", COMBINED.values(), ids=COMBINED)
def test_what_is_kept_and_never_differentiated(function):
    torch.manual_seed(0)
    check_exactness(Keeping(function), lambda m, b: m(b).square().sum(), torch.randn(5, 3), loss_reduction="sum")


@pytest.mark.parametrize("last", [lambda v: v[0], lambda v: v.unbind()[1], lambda v: v[:1].squeeze()])
def test_an_output_may_be_a_view_of_several_losses(last):
    norms, _ = clipped(Behind(lambda h: last(torch.stack([h.square().sum(), h.exp().sum()]))), lambda _, out: out)
    assert bool((norms > 0).all())


def test_a_loss_by_a_vector_of_sums():
    norms, _ = clipped(Behind(lambda h: (h.square().sum(0) * torch.tensor([1.0, 2.0])).sum()), lambda _, out: out)
    assert bool((norms > 0).all())


def centred(h: torch.Tensor) -> torch.Tensor:
    return h - h.mean(0)


def doubled(h: torch.Tensor) -> torch.Tensor:
    return h + h


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    CENTRED, DOUBLED = torch.jit.script(centred), torch.jit.script(doubled)


def centred_unseen(h: torch.Tensor) -> torch.Tensor:
    return CENTRED(h)


def doubled_unseen(h: torch.Tensor) -> torch.Tensor:
    return DOUBLED(h)


UNSEEN = {
    "vmap over features": lambda h: torch.vmap(lambda c: c - c.mean(), in_dims=1, out_dims=1)(h),
    "jit": centred_unseen,
    "in a list": lambda h: [h, centred_unseen(h)][::-1],
    "gradient": lambda h: torch.func.vjp(lambda c: c - c.mean(0), h)[0],
}


@pytest.mark.parametrize("function", UNSEEN.values(), ids=UNSEEN)
def test_an_output_of_a_call_that_is_not_seen(function):
    with pytest.raises(PrivacyError):
        clipped(Behind(function), lambda _, out: (out[0] if isinstance(out, list) else out).square().sum())


@pytest.mark.filterwarnings("ignore::tacit.errors.FallbackWarning")
@pytest.mark.parametrize("function", [doubled_unseen, torch.vmap(lambda row: row * row.sum())], ids=["jit", "vmap"])
def test_such_a_call_runs_apart_where_it_can(function):
    torch.manual_seed(0)
    check_exactness(Behind(function), lambda m, b: m(b).square().sum(), torch.randn(5, 3), loss_reduction="sum")


class MoreOutputs(nn.Module):
    """Also puts out what it was given, and what is made of parameters alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, given):
        return self.layer(x), given, self.layer.weight * 2, self.layer.bias


def test_outputs_that_are_not_of_the_batch():
    torch.manual_seed(0)
    given = (torch.randn(7, requires_grad=True) * 2).tanh()
    norms, _ = private_gradients(
        MoreOutputs(), lambda m, b: m(b, given)[0].square().sum(), torch.randn(5, 3), max_grad_norm=1.0
    )
    assert len(norms) == 5
